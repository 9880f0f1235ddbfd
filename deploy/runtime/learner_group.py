"""All learner ranks as one learner, in the driver's process: they start, step and fail together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from ...common.config.run import RunConfig
from ...common.errors import ClusterError, MinillmError, WorkerDied
from ...common.process import ProcessFacts, peak_resident
from ...common.types import AnswerFormat, AnswerMeasure, Floats, Passage, StepReport, WeightVersion
from ...common.weights import WeightManifest
from ...learner.sharding import Item, shard_batch, shard_step
from ...learner.worker import LearnerActor
from .ray_compat import call_inside

GRACE_S = 10.0
"""After one rank failed: how long the others may take to report their own errors, before they are ended."""


class LearnerGroup:
    """The student in training. Items hold references: no token passes through here.

    `options` gives each rank's keywords for `Actor.options`. The constructor returns while the ranks load
    the student; the first call waits for them.
    """

    def __init__(self, config: RunConfig, vocabulary: int, options: Callable[[int], dict[str, Any]]):
        self._config, self._steps = config, 0
        world = config.learner.world_size
        chosen = [{"name": f"learner-{rank}", **options(rank)} for rank in range(world)]
        self._names = [keywords["name"] for keywords in chosen]
        self._ranks: list[Any] = [
            LearnerActor.options(**keywords).remote(keywords["name"], rank, world, config, vocabulary)
            for rank, keywords in enumerate(chosen)
        ]
        self._lost: WorkerDied | None = None
        address, port = self._collect([self._ranks[0].listen.remote()], self._timeout_s)[0]
        # Ray waits for the answers before it calls `ready`, so that this process need not.
        nodes = [rank.node.remote() for rank in self._ranks]
        self._starting = [rank.ready.remote(address, port, *nodes) for rank in self._ranks]
        self._facts: list[ProcessFacts] = []

    def ready(self) -> list[ProcessFacts]:
        """Wait until all ranks are connected and hold the student; facts of each process.

        Raises ClusterError after cluster.start_timeout_s.
        """
        if self._starting:
            self._facts, self._starting = self._collect(self._starting, self._timeout_s), []
        return self._facts

    def set_teacher_head(self, head: Any) -> None:
        """The teacher's output layer, or a reference to it: the mapping that the teacher's `head` gives."""
        self._all("set_teacher_head", lambda rank: (head,))

    def step(
        self, items: Sequence[Item], texts: Sequence[Item] = (), *, fresh: bool, first_epoch: bool
    ) -> StepReport:
        """One optimiser step on these answers, and blocks of text for the language-model term.

        `fresh`: the first step after these answers were drawn, by the weights as they are. Raises
        NonFiniteLoss, with all weights as they were, or WorkerDied.
        """
        began, learner = time.monotonic(), self._config.learner
        rank_batches = shard_step(
            items, texts, world_size=learner.world_size, micro_batch_size=learner.micro_batch_size
        )
        reports = self._all("step", lambda rank: (rank_batches[rank],), fresh=fresh, first_epoch=first_epoch)
        self._steps += 1
        return StepReport(step=self._steps, metrics=reports[0], seconds=time.monotonic() - began)

    def release(self) -> None:
        """The set was trained on: its answers may leave the object store."""
        self._all("release", lambda rank: ())

    def measure(self, items: Sequence[Item], temperature: float = 1.0) -> list[AnswerMeasure]:
        """A record of each answer, in order, by the weights as they are; nothing is learned."""
        learner = self._config.learner
        shards = shard_batch(items, world_size=learner.world_size, micro_batch_size=learner.micro_batch_size)
        measured = self._all("measure", lambda rank: (shards[rank], temperature))
        found = {
            index: record
            for shard, records in zip(shards, measured, strict=True)
            for index, record in zip(shard.order, records, strict=True)
        }
        return [found[index] for index in range(len(items))]

    def read(self, passages: Sequence[Passage]) -> dict[str, list[Floats]]:
        """By rank: log q [T] of each answer at temperature 1; all ranks read all of them."""
        found = self._all("read", lambda rank: (list(passages),))
        return dict(zip(self._names, found, strict=True))

    def publish(self, version: WeightVersion, readers: Sequence[Any] = ()) -> WeightManifest:
        """All weights into the object store, where they stay while the manifest is held, and no longer: the
        next version reuses memory that every process has touched before.

        `readers`: actors whose `prefetch` is called with each bucket before the manifest is there.
        """
        return self._all("publish", lambda rank: (version, readers))[0]

    def save(self, folder: Path) -> None:
        """Write a checkpoint for `restore`, whole or not at all."""
        self._all("save", lambda rank: (str(folder.absolute()), self._steps))

    def restore(self, folder: Path) -> int:
        """Resume from a checkpoint; the optimiser steps made before it."""
        self._steps = self._all("restore", lambda rank: (str(folder.absolute()),))[0]
        return self._steps

    def export(self, folder: Path, answers: AnswerFormat) -> None:
        """The student as a plain Hugging Face folder, which ends its answers as `answers` says."""
        self._all("export", lambda rank: (str(folder.absolute()), answers))

    def load_weights(self, folder: Path) -> None:
        """Load the weights of an exported student, to measure or publish them."""
        self._all("load_weights", lambda rank: (str(folder.absolute()),))

    def peak_memory(self) -> dict[str, int]:
        """Most resident bytes so far of each rank that lives, by name; a dead one raises nothing here."""
        found = {}
        calls = [call_inside(rank, peak_resident) for rank in self._ranks]
        for name, call in zip(self._names, calls, strict=True):
            with suppress(RayActorError):
                found[name] = ray.get(call)
        return found

    def stop(self) -> None:
        """End all ranks."""
        self._lost = self._lost or WorkerDied("the learner was stopped")
        for rank in self._ranks:
            ray.kill(rank)

    @property
    def _timeout_s(self) -> float:
        return self._config.cluster.start_timeout_s

    def _all(self, method: str, args: Callable[[int], tuple[Any, ...]], **keywords: Any) -> list[Any]:
        """The same call to all ranks, each with arguments of its own."""
        self.ready()
        if self._lost:
            raise self._lost
        calls = [getattr(rank, method).remote(*args(n), **keywords) for n, rank in enumerate(self._ranks)]
        return self._collect(calls)

    def _collect(self, calls: list[Any], timeout_s: float | None = None) -> list[Any]:
        """All results; at the first failure the ranks fail together, with the most telling error."""
        try:
            waiting = calls
            while waiting:
                done, waiting = ray.wait(waiting, timeout=timeout_s)
                if not done:
                    raise GetTimeoutError
                ray.get(done)
            return ray.get(calls)
        except GetTimeoutError:
            self.stop()
            raise ClusterError(
                f"learner ranks did not start within cluster.start_timeout_s = {timeout_s:g};"
                " see their logs in Ray's dashboard, or raise it"
            ) from None
        except (RayActorError, RayTaskError) as first:
            self._fail(calls, first)
            raise AssertionError("unreachable") from first

    def _fail(self, calls: list[Any], first: Exception) -> None:
        """Raise the ranks' own error. Ranks that are stuck waiting for a dead one are ended."""
        _, stuck = ray.wait(calls, num_returns=len(calls), timeout=GRACE_S)
        errors = [None if call in stuck else _error_of(call) for call in calls]
        dead = [n for n, e in zip(self._names, errors, strict=False) if isinstance(e, RayActorError)]
        causes = [e.cause for e in errors if isinstance(e, RayTaskError)]
        cause = next((c for c in causes if isinstance(c, MinillmError)), None)
        if cause is not None and not dead and not stuck:
            raise cause from None
        self.stop()
        if cause is not None and not dead:
            raise cause from None
        names = dead or [n for n, e in zip(self._names, errors, strict=False) if e is not None]
        self._lost = WorkerDied(
            f"{', '.join(names)} died; the other learner ranks were ended. `minillm resume` goes on from the"
            f" last checkpoint. The error was: {first}"
        )
        raise self._lost from first


def _error_of(call: Any) -> Exception | None:
    try:
        ray.get(call)
    except (RayActorError, RayTaskError) as error:
        return error
    return None

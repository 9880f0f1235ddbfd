"""Many actors as one: each free actor takes the next piece of work, and results come back in order.

What travels through here are references and sizes. The pieces themselves (answers, hidden states) stay
in Ray's object store. A piece whose actor died is given to another one; when none is left, WorkerDied is
raised.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from ...common.errors import ClusterError, MinillmError, WorkerDied
from ...common.process import ProcessFacts
from ...common.types import BatchSummary


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chunk:
    """Some answers in the object store, and how long they are."""

    ref: Any
    """Reference of a list of passages, rollouts or scored ones."""
    summary: BatchSummary
    scored: bool = False
    """Whether the teacher saw them while they were drawn."""

    def __len__(self) -> int:
        return len(self.summary)


@dataclass(slots=True, eq=False)
class Pool:
    """Actors of one role. `lost` names those that died while working."""

    actors: list[Any]
    names: list[str]
    lost: list[str]

    @classmethod
    def of(cls, actors: Sequence[Any], role: str) -> Pool:
        """A pool of actors that are called role-0, role-1, ..."""
        return cls(list(actors), [f"{role}-{i}" for i in range(len(actors))], [])

    def map(
        self,
        pieces: Sequence[Any],
        call: Callable[[Any, Any], tuple[Any, Any]],
        done: Callable[[BatchSummary], None] = lambda summary: None,
    ) -> list[Chunk]:
        """Give each piece to a free actor; `call(actor, piece)` returns references of (list, summary).

        `done` is called with each piece's sizes as it finishes. Results are in the order of the pieces,
        whichever actor did them. Raises WorkerDied when every actor is gone, and whatever an actor itself
        raised.
        """
        chunks: list[Chunk | None] = [None] * len(pieces)
        waiting = deque(range(len(pieces)))
        free = deque(range(len(self.actors)))
        running: dict[Any, tuple[int, int, Any]] = {}
        while waiting or running:
            while waiting and free:
                worker, index = free.popleft(), waiting.popleft()
                ref, summary = call(self.actors[worker], pieces[index])
                running[summary] = (worker, index, ref)
            if not running:
                raise WorkerDied(self._all_dead_error())
            for summary in ray.wait(list(running), num_returns=1)[0]:
                worker, index, ref = running.pop(summary)
                try:
                    sizes = result_of(summary)
                except RayActorError:
                    self._lose(self.names[worker])
                    waiting.appendleft(index)
                    continue
                free.append(worker)
                chunks[index] = Chunk(ref=ref, summary=sizes)
                done(sizes)
        self._drop_dead()
        return [chunk for chunk in chunks if chunk is not None]

    def broadcast(self, call: Callable[[Any], Any]) -> list[Any]:
        """Ask every actor the same, at once; results of those that live, in the order of the actors.

        Raises WorkerDied when every actor is gone, and whatever an actor itself raised.
        """
        found = self.ask_living(call)
        self._drop_dead()
        return list(found.values())

    def ask_living(self, call: Callable[[Any], Any]) -> dict[str, Any]:
        """Ask every actor the same, at once; what each of those that live says, by name.

        Unlike `broadcast` it raises nothing where none is left: for what a run can do without.
        """
        found = {}
        for name, answer in [(n, call(a)) for a, n in zip(self.actors, self.names, strict=True)]:
            try:
                found[name] = result_of(answer)
            except RayActorError:
                self._lose(name)
        return found

    def ask_one(self, call: Callable[[Any], Any]) -> Any:
        """What one actor says, whichever lives. Raises WorkerDied when every actor is gone."""
        for actor, name in zip(self.actors, self.names, strict=True):
            try:
                return result_of(call(actor))
            except RayActorError:
                self._lose(name)
        raise WorkerDied(self._all_dead_error())

    def _lose(self, name: str) -> None:
        if name not in self.lost:
            self.lost.append(name)

    def _drop_dead(self) -> None:
        if self.actors and not set(self.names) - set(self.lost):
            raise WorkerDied(self._all_dead_error())
        alive = [(a, n) for a, n in zip(self.actors, self.names, strict=True) if n not in self.lost]
        self.actors, self.names = [a for a, _ in alive], [n for _, n in alive]

    def _all_dead_error(self) -> str:
        return (
            f"no actor is left of {', '.join(self.names)}; see their logs in Ray's dashboard, and go on with"
            " `minillm resume`"
        )


def result_of(call: Any, name: str | None = None) -> Any:
    """What a call returned; an error that a person is meant to read comes as itself, not as Ray's wrapper.

    With a `name`, the death of the actor becomes WorkerDied.
    """
    try:
        return ray.get(call)
    except RayTaskError as failure:
        if isinstance(failure.cause, MinillmError):
            raise failure.cause from None
        raise
    except RayActorError as death:
        if name is None:
            raise
        raise WorkerDied(
            f"{name} died; see its log in Ray's dashboard, and go on with `minillm resume`: {death}"
        ) from death


def chunked(things: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Consecutive pieces of at most `size`."""
    for start in range(0, len(things), size):
        yield things[start : start + size]


def facts_of(actors: Sequence[Any], timeout_s: float) -> list[ProcessFacts]:
    """Wait until all are ready. Raises ClusterError, or what kept one from starting."""
    try:
        return ray.get([actor.ready.remote() for actor in actors], timeout=timeout_s)
    except GetTimeoutError as late:
        raise ClusterError(
            f"actors did not start within cluster.start_timeout_s = {timeout_s:g};"
            " see their logs in Ray's dashboard, or raise it"
        ) from late
    except RayTaskError as failure:
        if isinstance(failure.cause, MinillmError):
            raise failure.cause from None
        raise ClusterError(f"an actor could not start: {failure}") from failure
    except RayActorError as death:
        raise ClusterError(f"an actor died while starting: {death}") from death

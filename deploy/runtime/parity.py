"""The parity check: before the first step all processes must compute the log-probs of a plain forward pass.

Losses, importance weights and divergences are right only if engine, teacher and learner agree on what they
compute. The referee reads the probes in a process that has ended before the actors start.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayTaskError, WorkerCrashedError

from ...actors.scorer import read_plainly
from ...common.config.base import Dtype
from ...common.config.run import ClusterConfig, ModelConfig, VerifyConfig
from ...common.errors import Disagreement, MinillmError
from ...common.logs import EventLog
from ...common.process import usable_cores
from ...common.types import Floats, Passage
from .placement import PROCESS
from .probes import REFEREE, Gap, ProbeLogprobs, compare, tolerated
from .workers import ActorGroup

log = EventLog(__name__)
UNCHECKED = (
    "unchecked against a referee: a plain forward pass of the models does not fit beside what runs here"
)
Job = tuple[str, str, str | None, Dtype]
"""Which model, its path and revision, and the type to read it in."""


class Parity:
    """The probes of a run, what the referee says of them, and the verdict on the processes of its actors."""

    def __init__(self, probes: Sequence[Passage], vocabulary: int, settings: VerifyConfig):
        self.probes, self._vocabulary, self._settings = probes, vocabulary, settings
        self._referee: list[ProbeLogprobs] = []

    def ask_referee(
        self, models: Mapping[str, tuple[ModelConfig, Dtype]], cluster: ClusterConfig
    ) -> str | None:
        """Have a plain forward pass of each model (student, teacher) read the probes, if that is wanted.

        Its process has ended when this returns. It reserves what a learner rank does. Returns what a person
        should know if that failed; processes are then compared with each other alone.
        """
        self._referee = []
        if not self._settings.referee:
            return None
        environment = {"env_vars": {name: os.environ.get(name, value) for name, value in PROCESS.items()}}
        task: Any = ray.remote(
            num_cpus=cluster.learner_cpus,
            num_gpus=cluster.learner_gpus,
            max_calls=1,
            max_retries=0,
            runtime_env=environment,
        )(_read)
        jobs: list[Job] = [
            (name, model.path, model.revision, dtype) for name, (model, dtype) in models.items()
        ]
        try:
            found: Any = ray.get(task.remote(jobs, self._vocabulary, list(self.probes), cluster.threads))
        except RayTaskError as failure:
            if isinstance(failure.cause, MinillmError):
                raise failure.cause from None
            if not isinstance(failure.cause, MemoryError):
                raise
            return UNCHECKED
        except (WorkerCrashedError, OutOfMemoryError):
            return UNCHECKED
        self._referee = [
            ProbeLogprobs(process=REFEREE, model=name, dtype=dtype, logprobs=found[name])
            for name, (_, dtype) in models.items()
        ]
        return None

    def forget_student(self) -> None:
        """Compare students with each other from now on: they have learned."""
        self._referee = [reading for reading in self._referee if reading.model != "student"]

    def gaps(self, readings: Sequence[ProbeLogprobs]) -> list[Gap]:
        """How far each process is from the referee, or from the first that has its model."""
        gaps = compare(self.probes, [*self._referee, *readings], self._tolerance, self._settings.within)
        for gap in gaps:
            log.event(
                "parity", process=gap.process, model=gap.model, against=gap.against, largest=gap.largest
            )
        return gaps

    def check(self, workers: ActorGroup) -> list[Gap]:
        """`gaps` of all processes of a group. Raises Disagreement, which names those that are too far off."""
        gaps = self.gaps(workers.readings(self.probes))
        if wrong := [gap for gap in gaps if not gap.agrees]:
            lines = "\n  ".join(map(str, wrong))
            raise Disagreement(
                f"processes do not compute the same log-probs:\n  {lines}\n  Something in a model's config is"
                " read in another way there; see the families in the documents. If one is only less exact"
                " than verify.tolerance allows, raise that."
            )
        return gaps

    def _tolerance(self, one: ProbeLogprobs, base: ProbeLogprobs) -> float:
        return tolerated(self._settings.tolerance, one.dtype, base.dtype)


def _read(
    jobs: Sequence[Job], vocabulary: int, probes: Sequence[Passage], threads: int | None
) -> dict[str, list[Floats]]:
    import torch

    torch.set_num_threads(threads or usable_cores())
    return {
        name: read_plainly(path, revision, dtype, vocabulary, probes) for name, path, revision, dtype in jobs
    }

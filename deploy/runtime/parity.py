"""The parity check: before the first step, every process must compute the same log-probs as a plain forward pass.

Losses, importance weights and divergences are right only if engine, teacher and learner agree on what they
compute. The referee reads the probes in a process that has ended before the actors start.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayTaskError

from ...actors.referee import read_plainly
from ...common.config.base import Dtype
from ...common.config.run import ClusterConfig, ModelConfig, VerifyConfig
from ...common.errors import Disagreement, MinillmError
from ...common.logs import EventLog
from ...common.parity import REFEREE, Gap, Reading, compare
from ...common.types import Passage
from .placement import PROCESS

log = EventLog(__name__)
TOLERANCE: Mapping[Dtype, float] = {"float32": 1e-3, "bfloat16": 0.2, "float16": 0.2}
"""Most nats by which a log-prob may differ, by the least exact type of those that are compared."""


def referee_readings(
    models: Mapping[str, ModelConfig], dtypes: Mapping[str, Dtype], vocabulary: int,
    probes: Sequence[Passage], cluster: ClusterConfig,
) -> list[Reading]:  # fmt: skip
    """What a plain forward pass of each model (student, teacher) says of the probes; its process has ended then."""
    gpus = cluster.learner_gpus
    environment = {"env_vars": {name: os.environ.get(name, value) for name, value in PROCESS.items()}}
    task: Any = ray.remote(num_cpus=cluster.learner_cpus, num_gpus=gpus, max_calls=1, runtime_env=environment)(_read)
    jobs = [(name, model.path, model.revision, dtypes[name]) for name, model in models.items()]
    try:
        found = ray.get(task.remote(jobs, vocabulary, list(probes), cluster.threads or os.cpu_count()))
    except RayTaskError as failure:
        if isinstance(failure.cause, MinillmError):
            raise failure.cause from None
        raise
    return [Reading(process=REFEREE, model=name, logprobs=found[name]) for name in models]


def _read(jobs: Sequence[tuple[str, str, str | None, Dtype]], vocabulary: int, probes: Sequence[Passage], threads: int):
    import torch

    torch.set_num_threads(threads)
    return {
        name: read_plainly(path, revision, dtype, vocabulary, probes) for name, path, revision, dtype in jobs
    }


def check_parity(
    probes: Sequence[Passage], readings: Sequence[Reading], dtypes: Mapping[str, Dtype], settings: VerifyConfig
) -> list[Gap]:
    """How far each process is from the referee. `dtypes` are by process, without the number of its copy.

    Raises Disagreement, naming every process that is too far off.
    """
    tolerances = {
        reading.process: settings.tolerance or TOLERANCE[dtypes[reading.process.rpartition("-")[0]]]
        for reading in readings
        if reading.process != REFEREE
    }
    gaps = compare(probes, readings, tolerances | {REFEREE: 0.0}, settings.within)
    for gap in gaps:
        log.event("parity", process=gap.process, model=gap.model, against=gap.against, largest=gap.largest)
    if wrong := [gap for gap in gaps if not gap.agrees]:
        lines = "\n  ".join(map(str, wrong))
        raise Disagreement(
            f"processes do not compute the same log-probs:\n  {lines}\n  The model's family, or a setting of"
            " its config, is read differently there: see docs/reference/families.md. If numbers are only less exact"
            " than verify.tolerance allows, raise it."
        )
    return gaps

"""Which actor reserves what: a pure plan of bundles, then one placement group that holds them all.

Everything is reserved at once, so that a run which does not fit fails before any model is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from ...common.config.eval import EvalConfig
from ...common.config.run import ClusterConfig, EngineConfig, RunConfig
from ...common.errors import ClusterError
from ...common.logs import LogTarget
from ...common.process import OPENMP, ProcessFacts

PROCESS = OPENMP | {
    # Passes make and drop tensors of many megabytes. Giving that memory back each time, and having it zeroed
    # again page by page, took a tenth of a step: glibc keeps it, in pages of 2 MiB where Linux has them.
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 30),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""Environment of every actor that computes, read when its process starts; what the user has set stays."""


def _process() -> dict[str, str]:
    return {name: os.environ.get(name, value) for name, value in PROCESS.items()}


def _logs() -> dict[str, str]:
    """Where the actors log: where this process does."""
    target = LogTarget.of_process()
    return {} if target is None else target.environment()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """What one actor reserves."""

    name: str
    role: str
    cpus: float
    gpus: float
    threads: int | None
    """As set; None = all cores of the machine on which it will run, which only the actor itself can count."""

    @property
    def resources(self) -> dict[str, float]:
        """As Ray's placement groups want it."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


def bundles(config: RunConfig) -> list[Bundle]:
    """The actors of a run, in the order in which they start."""
    here = config.cluster
    world_size, teachers = config.learner.world_size, config.teacher_server.num_actors
    found = _bundles("learner", world_size, here.learner_cpus, here.learner_gpus, here.threads)
    if needs_rollouts(config):
        found += engine_bundles(config.rollout, here)
    if config.asks_teacher:
        found += _bundles("teacher", teachers, here.teacher_cpus, here.teacher_gpus, here.threads)
    return found


def engine_bundles(engine: EngineConfig, cluster: ClusterConfig) -> list[Bundle]:
    """The rollout actors alone."""
    return _bundles(
        "rollout", engine.num_engines, cluster.rollout_cpus, cluster.rollout_gpus, cluster.threads
    )


def eval_bundles(config: EvalConfig, *, samples: bool, reads: bool) -> list[Bundle]:
    """The actors of an evaluation: engines where answers are sampled, measurers where text is read."""
    here = config.cluster
    found = engine_bundles(config.engine, here) if samples else []
    if reads:
        count = config.teacher_server.num_actors
        found += _bundles("measurer", count, here.teacher_cpus, here.teacher_gpus, here.threads)
    return found


def _bundles(role: str, count: int, cpus: float, gpus: float, threads: int | None) -> list[Bundle]:
    return [
        Bundle(name=f"{role}-{i}", role=role, cpus=cpus, gpus=gpus, threads=threads) for i in range(count)
    ]


def needs_rollouts(config: RunConfig) -> bool:
    """Whether any part of the run samples answers: training on them, or measuring them."""
    return config.samples_answers or config.measures_answers


class Reservation:
    """Part of the cluster for actors that start together, reserved from start to end."""

    def __init__(self, wanted: Sequence[Bundle], settings: ClusterConfig):
        self._bundles = list(wanted)
        self._writer_cpus = settings.writer_cpus
        self._group = self._reserve(settings.start_timeout_s)

    def _reserve(self, timeout_s: float) -> PlacementGroup:
        bundles = [bundle.resources for bundle in self._bundles]
        need = {kind: sum(b.get(kind, 0.0) for b in bundles) for kind in ("CPU", "GPU")}
        need["CPU"] += self._writer_cpus
        have = ray.cluster_resources()
        for kind, amount in need.items():
            if amount > have.get(kind, 0.0) + 1e-6:
                raise ClusterError(
                    f"the run needs {amount:g} {kind} ({len(bundles)} actors and a writer), the cluster has"
                    f" {have.get(kind, 0.0):g}; add machines, or lower cluster.*_{kind.lower()}s,"
                    " rollout.num_engines, teacher_server.num_actors or learner.world_size"
                )
        group = placement_group(bundles, strategy="PACK")
        if not group.wait(timeout_s):
            remove_placement_group(group)
            raise ClusterError(
                f"no room for {bundles} within cluster.start_timeout_s = {timeout_s:g}; free now:"
                f" {ray.available_resources()}"
            )
        return group

    def options(self, name: str) -> dict[str, Any]:
        """Keywords for `Actor.options(...)` of the actor called `name`."""
        index, bundle = next((i, b) for i, b in enumerate(self._bundles) if b.name == name)
        return {
            "name": name,
            "num_cpus": bundle.cpus,
            "num_gpus": bundle.gpus,
            "runtime_env": {"env_vars": {**_process(), **_logs()}},
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                placement_group=self._group, placement_group_bundle_index=index
            ),
        }

    def writer_options(self) -> dict[str, Any]:
        """The actor that writes files runs on the driver's machine, where the output folder is.

        Unless that machine does not offer the CPUs at all, as the head of many clusters: a hard place there
        would never start. `check_folder_seen` tells whether the folder is seen from where it came to run.
        """
        node = ray.get_runtime_context().get_node_id()
        return {
            "name": "writer",
            "num_cpus": self._writer_cpus,
            "runtime_env": {"env_vars": _logs()},
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=True),
        }

    def names(self, role: str) -> list[str]:
        """Names of the actors of a role."""
        return [bundle.name for bundle in self._bundles if bundle.role == role]

    def threads(self, name: str) -> int | None:
        """Threads that the actor called `name` may use; None = all cores of its machine."""
        return next(b.threads for b in self._bundles if b.name == name)

    def release(self) -> None:
        """Give everything back."""
        remove_placement_group(self._group)


def check_folder_seen(workers: Sequence[ProcessFacts], settings: ClusterConfig) -> None:
    """Raises ClusterError if a process that writes into the driver's folder would write into another one."""
    target = LogTarget.of_process()
    if target is None:  # nobody has marked a folder
        return
    blind = [w for w in workers if not w.sees_run_dir and w.name.startswith(("learner-", "writer"))]
    if not blind:
        return
    named = ", ".join(f"{w.name} on {w.node}" for w in sorted(blind, key=lambda w: w.name))
    or_here = ""
    if any(w.name == "writer" for w in blind):
        or_here = (
            f", or let Ray offer cluster.writer_cpus = {settings.writer_cpus:g} CPUs on the driver's machine"
        )
    raise ClusterError(
        f"output_dir = {Path(target.folder).parent} is not seen by {named}, which would write files there;"
        f" put it on storage that every machine mounts at the same path{or_here}"
    )

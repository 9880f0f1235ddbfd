"""One vLLM engine in one Ray process."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import ray

from ..common.config import EngineConfig, ModelConfig
from ..common.messages import BatchSummary, Prompt, Rollout, SamplingSpec, Scored, WeightVersion
from ..common.weights import WeightManifest
from .hub import local_folder
from .sampler import Sampler


@ray.remote(max_restarts=0)  # a lost actor has lost its weights: the driver decides what that means
class RolloutActor:
    """A mailbox around `Sampler`. Call `roll` with `num_returns=2`: answers stay away from the driver."""

    def __init__(
        self,
        name: str,
        student: ModelConfig,
        teacher: ModelConfig | None,
        settings: EngineConfig,
        *,
        vocabulary: int,
        max_tokens: int,
        threads: int | None = None,
    ):
        self._name = name
        self._student, self._teacher, self._settings = student, teacher, settings
        self._vocabulary, self._max_tokens, self._threads = vocabulary, max_tokens, threads

    def __repr__(self) -> str:
        return self._name

    def ready(self) -> dict[str, int | float | str]:
        """Start the engine; facts for the log once it is up. Call it first, once.

        Raises ModelError or ConfigError (what is raised while an actor is made would come out as text).
        """
        start = time.perf_counter()
        from .vllm_engine import VllmEngine

        self._engine = VllmEngine(
            local_folder(self._student),
            local_folder(self._teacher) if self._teacher else None,
            self._settings,
            vocabulary=self._vocabulary,
            max_tokens=self._max_tokens,
            threads=self._threads,
        )
        self._sampler = Sampler(self._engine, fetch=ray.get)
        import torch
        import vllm  # only now: the engine settles first how it is imported

        return {
            "name": self._name,
            "pid": os.getpid(),
            "start_s": time.perf_counter() - start,
            "weight_version": int(self._sampler.version),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "vllm": vllm.__version__,
        }

    def roll(
        self, prompts: Sequence[Prompt], spec: SamplingSpec
    ) -> tuple[list[Rollout] | list[Scored], BatchSummary]:
        """See Sampler.roll."""
        return self._sampler.roll(prompts, spec)

    def expect(self, version: WeightVersion, refs: Sequence[Any]) -> None:
        """See Sampler.expect."""
        self._sampler.expect(version, refs)

    def load(self, manifest: WeightManifest) -> tuple[int, float]:
        """See Sampler.load."""
        return self._sampler.load(manifest)

    def become(self, student: ModelConfig) -> None:
        """See VllmEngine.become."""
        self._engine.become(local_folder(student))

    def teacher_checksum(self) -> int | None:
        """crc32 of the teacher inside the engine; no update may change it. None without a teacher."""
        return self._engine.teacher_checksum()

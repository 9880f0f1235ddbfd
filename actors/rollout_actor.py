"""One vLLM engine in one Ray process."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import ray

from ..common.config import RolloutConfig
from ..common.messages import BatchSummary, Prompt, Rollout, SamplingSpec
from ..common.weights import WeightManifest
from .sampler import Sampler


@ray.remote(max_restarts=0)  # a lost actor has lost its weights: the driver decides what that means
class RolloutActor:
    """A mailbox around `Sampler`. Call `roll` with `num_returns=2`: answers stay away from the driver."""

    def __init__(
        self,
        name: str,
        student: str,
        teacher: str | None,
        settings: RolloutConfig,
        *,
        vocabulary: int,
        max_tokens: int,
        threads: int | None = None,
    ):
        start = time.perf_counter()
        from .vllm_engine import VllmEngine

        self._name = name
        self._engine = VllmEngine(
            student, teacher, settings, vocabulary=vocabulary, max_tokens=max_tokens, threads=threads
        )
        self._sampler = Sampler(self._engine, fetch=ray.get)
        self._start_s = time.perf_counter() - start

    def __repr__(self) -> str:
        return self._name

    def ready(self) -> dict[str, int | float | str]:
        """Facts for the log, once the engine is up."""
        import torch
        import vllm

        return {
            "name": self._name,
            "pid": os.getpid(),
            "start_s": self._start_s,
            "weight_version": int(self._sampler.version),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "vllm": vllm.__version__,
        }

    def roll(self, prompts: Sequence[Prompt], spec: SamplingSpec) -> tuple[list[Rollout], BatchSummary]:
        """See Sampler.roll."""
        return self._sampler.roll(prompts, spec)

    def load(self, manifest: WeightManifest) -> tuple[int, float]:
        """See Sampler.load."""
        return self._sampler.load(manifest)

    def teacher_checksum(self) -> int | None:
        """crc32 of the teacher inside the engine; no update may change it. None without a teacher."""
        return self._engine.teacher_checksum()

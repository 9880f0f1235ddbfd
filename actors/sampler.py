"""Prompts in, rollouts out, each stamped with the weights that drew it. Knows no Ray and no vLLM."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..common.errors import ModelError
from ..common.types import (
    BatchSummary,
    Dropped,
    FinishReason,
    Floats,
    Ids,
    Prompt,
    Rollout,
    SamplingSpec,
    Scored,
    WeightVersion,
)
from ..common.weights import WeightManifest
from .weight_prefetcher import Fetch, Received, WeightPrefetcher


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawn:
    """One answer as an engine gives it; log-probs in nats, as in `Rollout`."""

    answer_ids: Ids  # [T]
    behaviour_logprobs: Floats  # [T]
    student_logprobs: Floats  # [T]
    mixed_teacher_logprobs: Floats | None  # [T], None where alpha = 0
    finish: FinishReason
    teacher_states: npt.NDArray[np.generic] | None = None  # [T, H] where the spec asks for them


@runtime_checkable
class Generates(Protocol):
    """All that a sampler asks of an engine."""

    @property
    def max_tokens(self) -> int:
        """Most tokens of a prompt and its answer together."""
        ...

    def generate(self, prompts: Sequence[Prompt], spec: SamplingSpec) -> list[Drawn]:
        """`spec.samples` answers to each prompt: all of the first prompt, then all of the second ..."""
        ...

    def load(self, manifest: WeightManifest, received: Sequence[Received]) -> None:
        """Load newer student weights: what was received of each bucket of the manifest."""
        ...


class Sampler:
    """Draws answers with one engine."""

    def __init__(self, engine: Generates, *, fetch: Fetch):
        self._engine = engine
        self._prefetcher = WeightPrefetcher(fetch)
        self.version = WeightVersion(0)

    def generate(
        self, prompts: Sequence[Prompt], spec: SamplingSpec
    ) -> tuple[list[Rollout] | list[Scored], BatchSummary]:
        """`spec.samples` answers to each prompt, in order, and what the driver may know of them.

        Scored ones where `spec.states` asks for that: mixed sampling has computed all that scoring would.
        A prompt that cannot be answered in full length is dropped with a reason: an answer cut short
        by the engine's limit would look as if the student had more to say.
        """
        start = time.perf_counter()
        kept, dropped = self._admit(prompts, spec)
        drawn = self._engine.generate(kept, spec) if kept else []
        owners = [(prompt, sample) for prompt in kept for sample in sample_numbers(prompt, spec)]
        rollouts = [
            self._rollout(prompt, sample, answer)
            for (prompt, sample), answer in zip(owners, drawn, strict=True)
        ]
        given: list[Rollout] | list[Scored] = rollouts
        if spec.states is not None:
            assert spec.temperature == 1, (
                "a scored answer has log p at temperature 1, which must be the sampling temperature"
            )
            given = [_scored(rollout, one, spec.states) for rollout, one in zip(rollouts, drawn, strict=True)]
        return given, BatchSummary.of(rollouts, seconds=time.perf_counter() - start, dropped=dropped)

    def prefetch(self, version: WeightVersion, refs: Sequence[Any]) -> None:
        """Fetch buckets of weights to come while those behind them are being published."""
        if version > self.version:
            self._prefetcher.prefetch(version, refs)

    def load(self, manifest: WeightManifest) -> tuple[WeightVersion, float]:
        """Load newer weights; their version, and the seconds it took.

        Raises ModelError if they are not newer than those held: an actor never goes back.
        """
        start = time.perf_counter()
        if manifest.version <= self.version:
            raise ModelError(
                f"weights of version {manifest.version} were offered to an actor that holds version"
                f" {self.version}; publish a higher version"
            )
        self._engine.load(manifest, self._prefetcher.take(manifest))
        self.version = manifest.version
        return self.version, time.perf_counter() - start

    def _admit(self, prompts: Sequence[Prompt], spec: SamplingSpec) -> tuple[list[Prompt], list[Dropped]]:
        kept: list[Prompt] = []
        dropped: list[Dropped] = []
        for prompt in prompts:
            tokens, limit = len(prompt.token_ids), self._engine.max_tokens
            if tokens == 0:
                reason, detail = "empty prompt", "the template left no token"
            elif tokens + spec.max_tokens > limit:
                reason = "no room for an answer"
                detail = f"{tokens} prompt tokens + {spec.max_tokens} answer tokens > {limit}"
            else:
                kept.append(prompt)
                continue
            dropped.append(Dropped(prompt_id=prompt.id, stage="rollout", reason=reason, detail=detail))
        return kept, dropped

    def _rollout(self, prompt: Prompt, sample: int, drawn: Drawn) -> Rollout:
        return Rollout(
            prompt_id=prompt.id,
            prompt_ids=np.asarray(prompt.token_ids, np.int32),
            sample=sample,
            answer_ids=drawn.answer_ids,
            behaviour_logprobs=drawn.behaviour_logprobs,
            student_logprobs=drawn.student_logprobs,
            mixed_teacher_logprobs=drawn.mixed_teacher_logprobs,
            oldest=self.version,
            newest=self.version,
            finish=drawn.finish,
        )


def _scored(rollout: Rollout, drawn: Drawn, dtype: str) -> Scored:
    log_p = rollout.mixed_teacher_logprobs
    assert log_p is not None, "states of a teacher that was not mixed in"
    return Scored(
        passage=rollout,
        teacher_logprobs=log_p,
        plain_teacher_logprobs=log_p,
        hidden=drawn.teacher_states,
        hidden_dtype=dtype,
    )


def sample_numbers(prompt: Prompt, spec: SamplingSpec) -> range:
    """Which answers to the prompt a spec asks for."""
    return range(prompt.first_sample, prompt.first_sample + spec.samples)

"""Measuring the student: on validation prompts while it learns, on test prompts before and after."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from ...common.config.run import RunConfig
from ...common.types import Passage, Prompt, SamplingSpec
from ...learner.sharding import Item
from ..cli.progress import AnswerCounter, Progress
from ..data.streams import DataStreams
from ..models.model_card import write_card
from ..runtime.pool import Chunk
from ..runtime.workers import WorkerGroup
from .measurement import Measurement
from .metrics_log import MetricsLog
from .run_dir import RunDir, RunState

NUM_EXAMPLES = 3
"""Answers of a measurement that are kept as text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TestScores:
    """Test prompts answered by each model alone; None where that was not measured."""

    before: Measurement | None = None
    """By the student as it started."""
    after: Measurement | None = None
    """By the best student."""
    teacher: Measurement | None = None
    """By the teacher, where the engines hold it (teacher_mix > 0)."""


class Validator:
    """Measures the student as the engines and the learner hold it, and keeps the best one."""

    def __init__(
        self, config: RunConfig, streams: DataStreams, workers: WorkerGroup, folder: RunDir,
        metrics_log: MetricsLog, progress: Progress, state: RunState,
    ):  # fmt: skip
        self._config, self._streams, self._workers = config, streams, workers
        self._folder, self._metrics_log, self._progress, self._state = folder, metrics_log, progress, state
        self.measured_at = -1
        """Optimiser steps behind the student that was measured last."""
        self.values: dict[str, float] = {}
        """What was measured last, by the names of the metrics catalogue."""

    def measure(
        self, prompts: Sequence[Prompt], *, num_generations: int, teacher_mix: float = 0.0, seed: int = 0
    ) -> Measurement:
        """Score answers of the student alone (or, with teacher_mix = 1, of the teacher alone)."""
        config = self._config
        spec = SamplingSpec(
            max_tokens=config.validation.max_new_tokens or config.rollout.max_new_tokens,
            temperature=1.0,
            teacher_mix=teacher_mix,
            samples=num_generations,
            seed=seed_of(config.seed, "measure", seed),
            end_ids=self._streams.answer_format.end_ids,
        )
        counter = AnswerCounter(self._progress, len(prompts) * num_generations, self._metrics_log.dropped)
        chunks = self._workers.generate(prompts, spec, counter)
        scores = self._workers.text_scores(prompts, chunks)
        examples = [text for *_, text in self._workers.read(chunks[0], NUM_EXAMPLES)]
        if config.teacher is None or teacher_mix > 0:
            return Measurement.of(scores, None, examples)
        scored = self._workers.score(chunks, hidden=True, logprobs=False)
        records = self._workers.learner.measure(items_of(scored))
        reverse_kl = {(r.prompt_id, r.sample): r.reverse_kl for r in records if r.reverse_kl is not None}
        return Measurement.of(scores, reverse_kl, examples)

    def measure_start(self) -> None:
        """Test and validation scores of the student as it starts."""
        if self._streams.test:
            self._progress.phase("test prompts, before")
            count, config = self._config.validation.test_num_generations, self._config
            self._state.before = self.measure(self._streams.test, num_generations=count).to_json()
            if config.samples_answers and config.rollout.teacher_mix > 0:
                teacher = self.measure(self._streams.test, num_generations=count, teacher_mix=1.0)
                self._state.teacher = teacher.to_json()
        self.validate()

    def is_due(self) -> bool:
        """Whether eval_steps have gone by since the student was last measured."""
        every = self._config.eval_steps
        return self._state.step // every > self.measured_at // every

    def validate(self) -> dict[str, float]:
        """Measure on validation prompts, and keep the student if it is the best so far; the values."""
        state, config = self._state, self._config
        self.measured_at = state.step
        if self._streams.validation_answers or self._streams.validation:
            self._progress.phase("validating")
        if self._streams.validation_answers:
            values = {"validation/loss": self._answer_loss(self._streams.validation_answers)}
        elif self._streams.validation:
            count = config.validation.num_generations
            values = self.measure(self._streams.validation, num_generations=count).values()
        else:
            return {}
        self._metrics_log.record(state.step, values, version=state.version)
        self.values |= values
        name, sign = self._criterion(values)
        if is_better(values[name], state.best_value, sign):
            state.best_value, state.best_step = values[name], state.step
            self.save_best(values)
        return values

    def save_best(self, values: dict[str, float]) -> None:
        """Export the student as it is as the best."""
        self._workers.learner.export(self._folder.best, self._streams.answer_format)
        write_card(self._folder.best, self._config, self._state.step, values)

    def save_last(self) -> None:
        """Export the student as it is as the last; it is the best too where none was chosen."""
        self._workers.learner.export(self._folder.last, self._streams.answer_format)
        write_card(self._folder.last, self._config, self._state.step, self.values)
        if self._state.best_value is None:
            self.save_best(self.values)
            self._state.best_step = self._state.step

    def measure_best(self) -> TestScores:
        """Test scores of the student that learner and engines hold now, beside those of the start."""
        if not self._streams.test:
            return TestScores()
        self._progress.phase("test prompts, after")
        state, count = self._state, self._config.validation.test_num_generations
        return TestScores(
            before=Measurement.from_json(state.before) if state.before else None,
            after=self.measure(self._streams.test, num_generations=count),
            teacher=Measurement.from_json(state.teacher) if state.teacher else None,
        )

    def _answer_loss(self, passages: Sequence[Passage]) -> float:
        """-log q of given answers, nats per token."""
        records = self._workers.learner.measure(items_of(self._streams.put(passages)))
        return sum(r.nll for r in records) / sum(r.tokens for r in records)

    def _criterion(self, values: dict[str, float]) -> tuple[str, int]:
        """Which value chooses the best student, and whether more (+1) or less (-1) is better."""
        metric = self._config.validation.metric
        if "validation/loss" in values:
            metric = "loss"
        elif metric == "auto":
            answered = all(prompt.references for prompt in self._streams.validation)
            metric = "rouge_l" if answered else "reverse_kl"
        return f"validation/{metric}", 1 if metric == "rouge_l" else -1


def is_better(value: float, best: float | None, sign: int) -> bool:
    """Whether a value is to be the best so far; more (sign +1) or less (-1) is better, no number never is."""
    if not math.isfinite(value):
        return False
    return best is None or not math.isfinite(best) or sign * value > sign * best


def items_of(chunks: Sequence[Chunk]) -> list[Item]:
    """Every answer of the chunks, by reference and length."""
    return [
        Item(
            chunk=chunk.ref,
            position=position,
            prompt_tokens=chunk.summary.prompt_tokens[position],
            answer_tokens=chunk.summary.answer_tokens[position],
        )
        for chunk in chunks
        for position in range(len(chunk))
    ]


def seed_of(seed: int, purpose: str, number: int) -> int:
    """A seed of its own for each purpose, the same in every process."""
    return zlib.crc32(f"{seed}/{purpose}/{number}".encode())

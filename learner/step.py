"""One optimiser step of one rank: forward, objective, backward, report. Knows no Ray and no DeepSpeed.

All ranks run it in lock-step. Losses are divided by the totals of the whole step, so the gradient
does not depend on how the step was split into ranks and micro-batches.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..common.config.objective import ObjectiveConfig
from ..common.divergence import drawn_logprobs
from ..common.errors import DataError, NonFiniteLoss
from ..common.heads import Head
from ..common.metrics import CATALOGUE, Metrics
from ..common.types import Passage, Scored
from .batching import Batch, batch_of, pad_answers
from .divergences import Divergence, DoubtSplit
from .engine import TrainEngine
from .fused_loss import FusedLoss, fused_loss
from .logprob_cache import CachedRows, TeacherLogprobCache
from .objective import (
    TokenLoss,
    advantage_moments,
    answer_divergence,
    answer_loss,
    needs_current_logprobs,
    text_divergence,
    text_loss,
    token_constants,
)
from .returns import Moments, merged
from .sharding import Item, RankBatch

Load = Callable[[Item], Scored | Passage]
"""From an item to its tokens."""
MAX_NAMES = 8
"""Answers that an error names."""


@dataclass(frozen=True, kw_only=True)
class StepRules:
    """What a step needs to know of the run."""

    objective: ObjectiveConfig
    temperature: float
    max_new_tokens: int
    """Slots of an answer, for whitening."""
    chunk_tokens: int
    """Answer positions for which logits exist at a time."""
    cached_positions: int = 0
    """Answer positions of a set for which the teacher's log-probs are cached until `release`."""
    plugins: tuple[str, ...] = ()
    """Modules that may offer the divergence."""


@dataclass(kw_only=True, eq=False)
class _Sums:
    """Sums over a step's micro-batches on this rank."""

    totals: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    bad: list[str] = field(default_factory=list)

    def add(self, name: str, values: Tensor) -> None:
        self.totals[name] += values.sum(dtype=torch.float64).item()


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """What the loss of one micro-batch must know of the whole optimiser step."""

    moments: Moments | None
    """Of the advantages, for whitening."""
    split: DoubtSplit | None
    """Easy and hard tokens, for atkd."""


class StepRunner:
    """Makes optimiser steps on one rank's engine."""

    def __init__(self, engine: TrainEngine, rules: StepRules, teacher: Head | None = None):
        self._engine, self._rules, self.teacher = engine, rules, teacher
        self._cache: TeacherLogprobCache | None = None

    def release(self) -> None:
        """The set of answers was trained on."""
        if self._cache is not None:
            self._cache.release()

    def step(self, rank_batch: RankBatch, load: Load, *, fresh: bool, first_epoch: bool) -> Metrics:
        """One optimiser step over all ranks; metrics of the whole step, the same on each rank.

        `fresh`: no step was made since the answers were drawn, so that log q must equal the engine's.
        Raises NonFiniteLoss on all ranks, with the weights as they were, where loss or gradient is no number.
        """
        objective, sums = self._rules.objective, _Sums()
        facts = _Facts(
            moments=self._moments(rank_batch, load) if self._is_minillm and objective.whiten else None,
            split=self._split(rank_batch, load) if objective.splits_tokens else None,
        )
        for micro_batch in rank_batch.answers.micro_batches:
            samples = [load(item) for item in micro_batch]
            divisor = rank_batch.answers.totals.divisor(objective.reduction)
            cached = self._cached_rows(micro_batch)
            self._learn_answers(samples, facts, divisor, sums, fresh=fresh, cached=cached)
        for micro_batch in rank_batch.texts.micro_batches:
            divisor = rank_batch.texts.totals.divisor(objective.reduction)
            self._learn_text([load(item) for item in micro_batch], divisor, sums)
        values = self._engine.all_reduce_sum([sums.totals[name] for name in _TOTALS] + [len(sums.bad)])
        totals = dict(zip(_TOTALS, values[:-1], strict=True))
        if values[-1]:
            self._stop("the loss is not a finite number", sums.bad)
        rate, norm = self._engine.rate(), self._engine.step()
        if not math.isfinite(norm):
            mine = [
                item
                for run in rank_batch.answers.micro_batches + rank_batch.texts.micro_batches
                for item in run
            ]
            self._stop("the gradient is not a finite number", _names([load(item) for item in mine]))
        metrics = self._metrics(totals, rank_batch, fresh=fresh, first_epoch=first_epoch)
        return metrics | {"learner/grad_norm": (norm, 1.0), "learner/lr": (rate, 1.0)}

    @property
    def _is_minillm(self) -> bool:
        return self._rules.objective.kind == "minillm"

    def _moments(self, rank_batch: RankBatch, load: Load) -> Moments:
        """Whitening statistics of the step, from what was sampled and scored alone."""
        objective, rules = self._rules.objective, self._rules
        parts = []
        for micro_batch in rank_batch.answers.micro_batches:
            if samples := [load(item) for item in micro_batch]:
                answers = pad_answers(samples, torch.device("cpu"), objective.reward_temperature)
                parts.append(advantage_moments(answers, objective, rules.max_new_tokens))
        return Moments(*self._engine.all_reduce_sum(merged(parts).as_list()))

    def _split(self, rank_batch: RankBatch, load: Load) -> DoubtSplit:
        """Which tokens the teacher doubts, over all ranks."""
        mine = [doubts(load(item)) for run in rank_batch.answers.micro_batches for item in run]
        parts = [part for of_rank in self._engine.all_gather(mine) for part in of_rank]
        return DoubtSplit.of(torch.cat(parts) if parts else torch.zeros(0))

    def _learn_answers(
        self,
        samples: Sequence[Scored | Passage],
        facts: _Facts,
        divisor: int,
        sums: _Sums,
        *,
        fresh: bool,
        cached: CachedRows | None,
    ) -> None:
        objective = self._rules.objective
        batch = self._batch(samples, hidden=objective.needs_teacher_hidden)
        sampled = hard = weights = None
        if facts.split is not None:
            given = [doubts(sample) for sample in samples] or [torch.zeros(0)]
            hard = facts.split.hard(torch.cat(given)).to(self._engine.device)
            weights = facts.split.weights(hard, objective.atkd_easy_weight)
        divergence = answer_divergence(objective, hard, self._rules.plugins)
        if not self._is_minillm:
            loss = answer_loss(objective, weights=weights)
        else:
            answers = pad_answers(samples, self._engine.device, objective.reward_temperature)
            current = None
            if needs_current_logprobs(objective):
                current = torch.zeros_like(answers.student_logprobs)
                current[answers.mask] = self._current_logprobs(batch)
            packed = token_constants(answers, objective, facts.moments, current)[answers.mask]
            sampled, loss = packed.student_logprobs, answer_loss(objective, packed)
        overlap = fresh and self._is_minillm and divergence is not None
        temperature = self._rules.temperature
        fused = self._fused(batch, loss, divergence, divisor, temperature, overlap=overlap, cached=cached)
        self._engine.backward(fused.loss)
        sums.bad += _not_finite(batch, fused)
        sums.add("loss", fused.loss.detach())
        sums.add("divergence", fused.divergence)
        sums.add("nll", -fused.logprobs)
        for name, values in fused.figures.items():
            sums.add(name, values)
        if fresh and sampled is not None:
            sums.add("gap", (fused.logprobs - sampled).abs())

    def _learn_text(self, samples: Sequence[Scored | Passage], divisor: int, sums: _Sums) -> None:
        objective = self._rules.objective
        divergence = text_divergence(objective)
        batch = self._batch(samples, hidden=divergence is not None)
        fused = self._fused(batch, text_loss(objective), divergence, divisor, 1.0)
        loss = fused.loss * objective.lm_coef
        self._engine.backward(loss)
        sums.bad += _not_finite(batch, fused)
        sums.add("loss", loss.detach())
        sums.add("text", fused.loss.detach() * divisor)

    def _batch(self, samples: Sequence[Scored | Passage], *, hidden: bool) -> Batch:
        return batch_of(
            samples, self._engine.device, hidden=hidden, max_packed_len=self._engine.max_packed_len
        )

    def _fused(
        self,
        batch: Batch,
        loss: TokenLoss,
        divergence: Divergence | None,
        divisor: int,
        temperature: float,
        *,
        overlap: bool = False,
        cached: CachedRows | None = None,
    ) -> FusedLoss:
        def use(hidden: Tensor, student: Head) -> FusedLoss:
            return fused_loss(
                hidden,
                student,
                batch.targets,
                loss,
                divisor=divisor,
                teacher_hidden=teacher_hidden(batch, self.teacher),
                teacher=self.teacher,
                divergence=divergence,
                temperature=temperature,
                overlap=overlap,
                chunk_tokens=self._rules.chunk_tokens,
                cached=cached,
            )

        return self._engine.run(batch, use, train=True)

    def _cached_rows(self, micro_batch: Sequence[Item]) -> CachedRows | None:
        positions = self._rules.cached_positions
        if not positions or self.teacher is None:
            return None
        if self._cache is None:
            self._cache = TeacherLogprobCache(positions, self.teacher.vocabulary, self._engine.device)
        return self._cache.rows([(item, item.answer_tokens) for item in micro_batch])

    def _current_logprobs(self, batch: Batch) -> Tensor:
        def use(hidden: Tensor, student: Head) -> Tensor:
            return drawn_logprobs(hidden, student, batch.targets, temperatures=[self._rules.temperature])[0]

        return self._engine.run(batch, use, train=False)

    def _stop(self, what: str, mine: list[str]) -> None:
        """Raise on every rank, with the names that all of them hold."""
        names = [name for part in self._engine.all_gather(mine) for name in part]
        more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        raise NonFiniteLoss(
            f"{what}, so this step was not made and the weights are as they were; it came from the answers to"
            f" {', '.join(names[:MAX_NAMES])}{more}. Check these, or try a smaller"
            " learner.optimizer.lr or an objective.reward_clip"
        )

    def _metrics(
        self, totals: dict[str, float], rank_batch: RankBatch, *, fresh: bool, first_epoch: bool
    ) -> Metrics:
        objective, answers, texts = self._rules.objective, rank_batch.answers.totals, rank_batch.texts.totals
        divisor, tokens = float(answers.divisor(objective.reduction)), float(answers.answer_tokens)
        found: Metrics = {"learner/loss": (totals["loss"], 1.0)}
        if texts.answers:
            found["learner/text_loss"] = (totals["text"], float(texts.answer_tokens))
        if not self._is_minillm:
            found["learner/answer_nll"] = (totals["nll"], tokens)
            if objective.kind == "kd":
                name = f"learner/{objective.divergence}"
                found[name if name in CATALOGUE else "learner/divergence"] = (totals["divergence"], tokens)
            return found
        if objective.single_step:
            found["learner/reverse_kl"] = (totals["divergence"], tokens)
        if objective.long_term:
            found["learner/long_term_loss"] = (totals["long_term"] / divisor, 1.0)
        if objective.single_step:
            found["learner/single_step_loss"] = (totals["single_step"] / divisor, 1.0)
        found["learner/ratio"] = (totals["ratio"], tokens)
        found["learner/clip_fraction"] = (totals["clipped"], tokens)
        if first_epoch:
            found["learner/clip_fraction_first"] = (totals["clipped"], tokens)
        if fresh:
            found["learner/engine_gap"] = (totals["gap"], tokens)
        if fresh and objective.single_step:
            found["learner/overlap"] = (totals["overlap"], tokens)
        return found


_TOTALS: tuple[str, ...] = (
    "loss",
    "divergence",
    "nll",
    "text",
    "ratio",
    "clipped",
    "single_step",
    "long_term",
    "overlap",
    "gap",
)
"""Sums over a step's tokens that ranks add up; a name that a kind of step does not know stays 0."""


def teacher_hidden(batch: Batch, teacher: Head | None) -> Tensor | None:
    """The teacher's hidden states of a micro-batch; none, but of the right width, where it is empty."""
    if batch.teacher_hidden is not None or batch.names or teacher is None:
        return batch.teacher_hidden
    return teacher.weight.new_zeros(0, teacher.weight.shape[1])


def doubts(sample: Scored | Passage) -> Tensor:
    """1 - p of each token of an answer [T], p the teacher's probability at the temperature of the loss."""
    if not isinstance(sample, Scored) or sample.teacher_logprobs is None:
        raise DataError(f"{_names([sample])[0]}: atkd needs answers that a teacher has scored")
    return -torch.expm1(torch.tensor(sample.teacher_logprobs, dtype=torch.float32))


def _names(samples: Sequence[Scored | Passage]) -> list[str]:
    return list(batch_of(samples, torch.device("cpu"), hidden=False).names)


def _not_finite(batch: Batch, fused: FusedLoss) -> list[str]:
    """Names of the answers whose loss is no number; the whole micro-batch where none stands out."""
    if bool(torch.isfinite(fused.loss)):
        return []
    fine = torch.ones_like(fused.logprobs, dtype=torch.bool)
    for values in (fused.logprobs, fused.divergence, *fused.figures.values()):
        fine &= torch.isfinite(values)
    return [batch.names[row] for row in batch.rows[~fine].unique().tolist()] or list(batch.names)

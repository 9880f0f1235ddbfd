"""From what was measured of one model on one data set to the rows of results.json. Pure.

A row is `{model, data, metric, bucket, seed, value, low, high, n}`: `bucket` is "all", a length of the
reference, a length of the answer (exposure bias) or a bin of confidence; `seed` is null for the mean over
seeds; [low, high] is a 95 % bootstrap interval over prompts, null where there is none; n counts answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ...actors.text_sink import AnswerScore
from ...common.config.eval import METRICS
from .bootstrap import Tally, paired_difference
from .buckets import ALL, LENGTH_BUCKETS, length_bucket
from .calibration import calibration_error, reliability
from .exposure import ExposureBias

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFigures(AnswerScore):
    """One answer in numbers: its scores, and divergences from the teacher, summed over its tokens, nats."""

    seed: int
    """What the answer was drawn with."""
    reverse_kl: float | None = None
    forward_kl: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenFigures:
    """-log q of one given answer, nats summed over its tokens."""

    prompt_id: str
    nll: float
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelFigures:
    """One classification."""

    prompt_id: str
    confidence: float
    """Probability of the chosen label among the labels."""
    right: bool
    mass: float
    """Probability of all labels together, before they were renormalised."""


@dataclass(slots=True, kw_only=True)
class Part:
    """All that was measured of one model on one data set, as plain values."""

    model: str
    data: str
    metrics: tuple[str, ...] = tuple(METRICS)
    """Which figures were taken."""
    answers: list[AnswerFigures] = field(default_factory=list)
    distinct: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Seed -> (different 4-grams, all 4-grams)."""
    words: dict[str, int] = field(default_factory=dict)
    """Prompt id -> words of its (first) reference."""
    exposure: list[Row] = field(default_factory=list)
    given: list[GivenFigures] = field(default_factory=list)
    labels: list[LabelFigures] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What could not be measured, and why."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> Part:
        """The inverse of `to_json`."""
        return cls(
            model=kept["model"],
            data=kept["data"],
            metrics=tuple(kept["metrics"]),
            answers=[AnswerFigures(**one) for one in kept["answers"]],
            distinct={int(seed): (one[0], one[1]) for seed, one in kept["distinct"].items()},
            words=kept["words"],
            exposure=kept["exposure"],
            given=[GivenFigures(**one) for one in kept["given"]],
            labels=[LabelFigures(**one) for one in kept["labels"]],
            notes=kept["notes"],
        )


Term = Callable[[AnswerFigures], tuple[float | None, float]]
ANSWER_TERMS: dict[str, Term] = {
    "rouge_l": lambda a: (a.rouge_l, 1.0),
    "exact_match": lambda a: (a.exact_match, 1.0),
    "accuracy": lambda a: (a.accuracy, 1.0),
    "answer_tokens": lambda a: (float(a.tokens), 1.0),
    "eos_rate": lambda a: (100.0 * a.finished, 1.0),
    "repetition": lambda a: (100.0 * a.repeated_grams, a.grams),
    "reverse_kl": lambda a: (a.reverse_kl, float(a.tokens)),
    "forward_kl": lambda a: (a.forward_kl, float(a.tokens)),
}
"""Metric -> (total, count) of an answer; its value is the sum of totals over the sum of counts."""
BY_LENGTH = ("rouge_l", "exact_match")
COMPARED = ("rouge_l", "exact_match", "accuracy", "reverse_kl", "forward_kl", "lm_loss", "label_accuracy")


def rows_of(part: Part) -> list[Row]:
    """All rows of a part."""
    rows, wanted = list[Row](), part.metrics
    for metric in (m for m in ANSWER_TERMS if m in wanted):
        for bucket, tally in _tallies(part, metric):
            rows += _seed_rows(part, metric, bucket, tally)
    if "distinct_4" in wanted and part.distinct:
        rows += _distinct_rows(part)
    if "lm_loss" in wanted and part.given:
        tally = _given_tally(part)
        rows.append(_row(part, "lm_loss", ALL, None, *_figures(tally), len(part.given)))
    if "ex_acc_err" in wanted:
        rows += part.exposure
    if "calibration" in wanted and part.labels:
        rows += _label_rows(part)
    return rows


def exposure_rows(model: str, data: str, bias: ExposureBias) -> list[Row]:
    """The three curves, one row for each length."""
    curves = {
        "ex_acc_err": bias.excess,
        "accumulated_kl": bias.accumulated,
        "per_step_kl": bias.per_step,
    }
    part = Part(model=model, data=data)
    return [
        _row(part, metric, str(i + 1), None, curve.value[i], curve.low[i], curve.high[i], bias.answers[i])
        for metric, curve in curves.items()
        for i in range(len(curve.value))
    ]


def comparisons_of(parts: Sequence[Part]) -> list[Row]:
    """Paired bootstrap tests between any two models on a data set: b minus a on the prompts of both.

    Of the metrics that were taken of both.
    """
    rows: list[Row] = []
    for n, first in enumerate(parts):
        for second in parts[n + 1 :]:
            if first.data != second.data or first.model == second.model:
                continue
            for metric, bucket, one, two in _pairs(first, second):
                found = paired_difference(one, two)
                if found is not None and math.isfinite(found.mean):
                    rows.append(
                        {
                            "data": first.data, "metric": metric, "bucket": bucket,
                            "a": first.model, "b": second.model, "difference": found.mean,
                            "low": found.low, "high": found.high, "p_value": found.p_value,
                            "n": found.prompts,
                        }
                    )  # fmt: skip
    return rows


def _pairs(first: Part, second: Part) -> Iterator[tuple[str, str, Tally, Tally]]:
    wanted = set(first.metrics).intersection(second.metrics)
    for metric in COMPARED:
        if metric in ANSWER_TERMS and metric in wanted:
            ours, theirs = dict(_tallies(first, metric)), dict(_tallies(second, metric))
            for bucket, one in ours.items():
                two = theirs.get(bucket)
                if one is not None and two is not None:
                    yield metric, bucket, one, two
        elif metric == "lm_loss" and metric in wanted and first.given and second.given:
            yield metric, ALL, _given_tally(first), _given_tally(second)
        elif metric == "label_accuracy" and "calibration" in wanted and first.labels and second.labels:
            yield metric, ALL, _label_tally(first), _label_tally(second)


def _tallies(part: Part, metric: str) -> Iterator[tuple[str, Tally | None]]:
    """(bucket, tally) of a metric of answers; None for an empty bucket; nothing without values."""
    term = ANSWER_TERMS[metric]
    known = [(a, *term(a)) for a in part.answers]
    known = [(a, total, count) for a, total, count in known if total is not None]
    if not known:
        return
    yield ALL, _tally(known)
    if metric in BY_LENGTH:
        for bucket in LENGTH_BUCKETS:
            inside = [k for k in known if length_bucket(part.words[k[0].prompt_id]) == bucket]
            yield bucket, _tally(inside) if inside else None


def _tally(known: Sequence[tuple[AnswerFigures, float, float]]) -> Tally:
    return Tally.of(
        [a.prompt_id for a, _, _ in known],
        [a.seed for a, _, _ in known],
        [total for _, total, _ in known],
        [count for _, _, count in known],
    )


def _given_tally(part: Part) -> Tally:
    ids = [g.prompt_id for g in part.given]
    return Tally.of(ids, [0] * len(ids), [g.nll for g in part.given], [g.tokens for g in part.given])


def _label_tally(part: Part) -> Tally:
    ids = [one.prompt_id for one in part.labels]
    return Tally.of(ids, [0] * len(ids), [100.0 * one.right for one in part.labels], [1.0] * len(ids))


def _seed_rows(part: Part, metric: str, bucket: str, tally: Tally | None) -> Iterator[Row]:
    """One row for each seed, then their mean; one empty row for an empty bucket."""
    if tally is None:
        yield _row(part, metric, bucket, None, math.nan, math.nan, math.nan, 0)
        return
    seeds = sorted({a.seed for a in part.answers})
    prompts = set(tally.prompt_ids)
    answers = [a for a in part.answers if a.prompt_id in prompts]
    for index, seed in enumerate(seeds):
        alone = Tally(
            prompt_ids=tally.prompt_ids,
            totals=tally.totals[index : index + 1],
            counts=tally.counts[index : index + 1],
        )
        count = sum(a.seed == seed for a in answers)
        yield _row(part, metric, bucket, seed, *_figures(alone), count)
    yield _row(part, metric, bucket, None, *_figures(tally), len(answers))


def _distinct_rows(part: Part) -> Iterator[Row]:
    """Without an interval: a resampled set of answers repeats itself, and would look less diverse."""
    values = []
    for seed, (distinct, total) in sorted(part.distinct.items()):
        values.append(100 * distinct / total if total else math.nan)
        count = sum(a.seed == seed for a in part.answers)
        yield _row(part, "distinct_4", ALL, seed, values[-1], math.nan, math.nan, count)
    yield _row(part, "distinct_4", ALL, None, float(np.mean(values)), math.nan, math.nan, len(part.answers))


def _label_rows(part: Part) -> Iterator[Row]:
    count = len(part.labels)
    confidence = np.array([one.confidence for one in part.labels])
    right = np.array([one.right for one in part.labels])
    yield _row(part, "label_accuracy", ALL, None, *_figures(_label_tally(part)), count)
    error = calibration_error(confidence, right)
    yield _row(part, "ece", ALL, None, error.mean, error.low, error.high, count)
    mass = float(np.mean([one.mass for one in part.labels]))
    yield _row(part, "label_mass", ALL, None, mass, math.nan, math.nan, count)
    for one in reliability(confidence, right):
        bucket = f"{one.low:.1f}-{one.high:.1f}"
        yield _row(part, "reliability_accuracy", bucket, None, one.accuracy, math.nan, math.nan, one.count)
        yield _row(
            part, "reliability_confidence", bucket, None, one.confidence, math.nan, math.nan, one.count
        )


def _figures(tally: Tally) -> tuple[float, float, float]:
    interval = tally.interval()
    return interval.mean, interval.low, interval.high


def _row(
    part: Part, metric: str, bucket: str, seed: int | None, value: float, low: float, high: float, n: int
) -> Row:
    def plain(number: float) -> float | None:
        return float(number) if math.isfinite(number) else None  # JSON has no nan

    return {
        "model": part.model, "data": part.data, "metric": metric, "bucket": bucket, "seed": seed,
        "value": plain(value), "low": plain(low), "high": plain(high), "n": int(n),
    }  # fmt: skip

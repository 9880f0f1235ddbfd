"""Exposure bias: what a student loses by walking on its own prefixes (MiniLLM, appendix B.5, eq. 30-32).

    R(l)         = sum over t <= l of E[KL(p || q) at t], prefixes drawn by the student
    epsilon(l)   = the mean over t <= l of the same, prefixes drawn by the teacher
    ExAccErr(l)  = (R(l) - l epsilon(l)) / (l epsilon(l)) x 100 %

The inner expectation over the next token is exact: KL(p || q) is a sum over the whole vocabulary, measured
at every position of a sampled answer, its first token included.

How answers that have ended are counted is a choice. An answer of T tokens has divergences at t = 1 .. T.

- `left_out` (default): the mean at t is over the answers that still have a token at t, so that short answers
  do not flatten the curve by themselves.
- `as_zero`: an ended answer adds 0, and the mean is over all answers, as in the authors' released code.

    U = prompts, L = lengths, D = bootstrap draws. Everything is in nats, but for ExAccErr in per cent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from .bootstrap import DRAWS, SHARE, Reals, band, ratio, resamples

Ended = Literal["left_out", "as_zero"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Divergences:
    """Exact KL(teacher || student) along one sampled answer."""

    prompt_id: str
    kl: npt.NDArray[np.floating]  # [T] nats, one per answer token


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """A value at each length, with its bootstrap band over prompts; all [L]."""

    value: Reals
    low: Reals
    high: Reals


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExposureBias:
    """The three curves at l = 1 .. L."""

    accumulated: Curve
    """R(l), nats."""
    per_step: Curve
    """epsilon(l), nats per token."""
    excess: Curve
    """ExAccErr(l), per cent."""
    answers: npt.NDArray[np.int64]  # [L] student answers that have a token at l


@dataclass(frozen=True, slots=True, eq=False)
class _Sums:
    totals: Reals  # [U, L] KL, added up over a prompt's answers
    counts: Reals  # [U, L] answers that the mean at t is over


def exposure_bias(
    student: Sequence[Divergences],
    teacher: Sequence[Divergences],
    *,
    ended: Ended = "left_out",
    fraction: float = SHARE,
    draws: int = DRAWS,
    seed: int = 0,
) -> ExposureBias:
    """The curves from divergences on the student's own answers and on the teacher's.

    L is the length of the longest answer that both have, so that no value rests on one side alone. Prompts
    are resampled together with the answers of both to them. ExAccErr is nan where epsilon is 0.
    """
    length = min(max((len(d.kl) for d in answers), default=0) for answers in (student, teacher))
    units = {p: i for i, p in enumerate(sorted({d.prompt_id for d in (*student, *teacher)}))}
    own, given = _sums(student, units, length, ended), _sums(teacher, units, length, ended)
    once = np.ones((1, len(units)))
    values = _curves(once, own, given)
    bands = [band(drawn, fraction) for drawn in _curves(resamples(len(units), draws, seed), own, given)]
    accumulated, per_step, excess = (
        Curve(value=value[0], low=low, high=high) for value, (low, high) in zip(values, bands, strict=True)
    )
    lengths = np.array([len(d.kl) for d in student])
    answers = (lengths[:, None] > np.arange(length)).sum(0)
    return ExposureBias(accumulated=accumulated, per_step=per_step, excess=excess, answers=answers)


def _sums(answers: Sequence[Divergences], units: dict[str, int], length: int, ended: Ended) -> _Sums:
    totals, counts = np.zeros((len(units), length)), np.zeros((len(units), length))
    for answer in answers:
        row, kl = units[answer.prompt_id], np.asarray(answer.kl[:length], np.float64)
        totals[row, : len(kl)] += kl
        counts[row, : len(kl) if ended == "left_out" else length] += 1
    return _Sums(totals, counts)


def _curves(weights: Reals, own: _Sums, given: _Sums) -> tuple[Reals, Reals, Reals]:
    """R, epsilon and ExAccErr [D, L] with each prompt counted as often as `weights` [D, U] says.

    A draw in which no answer reaches t has no value from t on.
    """
    steps = np.arange(1, own.totals.shape[1] + 1)
    accumulated, ideal = (
        np.cumsum(ratio(weights @ sums.totals, weights @ sums.counts), axis=1) for sums in (own, given)
    )
    return accumulated, ideal / steps, 100 * ratio(accumulated - ideal, ideal)

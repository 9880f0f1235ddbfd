"""How sure a mean over prompts is: percentile bootstrap intervals, resampling prompts, not answers.

Answers to the same prompt are alike, so a prompt with all its answers is the unit that is drawn again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean and its bootstrap interval."""

    mean: float
    low: float
    high: float
    prompts: int

    def apart(self, other: Interval) -> bool:
        """Whether the two intervals do not touch."""
        return self.low > other.high or other.low > self.high


def ratio_interval(
    prompt_ids: Sequence[str],
    totals: npt.ArrayLike,
    counts: npt.ArrayLike,
    *,
    share: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Interval of sum(totals) / sum(counts) over answers, prompts drawn with replacement.

    With counts = tokens this is a per-token mean over all answers; with counts = 1 a mean over answers.
    """
    units, place = np.unique(np.asarray(prompt_ids), return_inverse=True)
    top = np.bincount(place, weights=np.asarray(totals, dtype=np.float64), minlength=len(units))
    bottom = np.bincount(place, weights=np.asarray(counts, dtype=np.float64), minlength=len(units))
    drawn = np.random.default_rng(seed).integers(0, len(units), size=(draws, len(units)))
    means = top[drawn].sum(1) / bottom[drawn].sum(1)
    edge = (1 - share) / 2
    low, high = np.quantile(means, [edge, 1 - edge])
    return Interval(
        mean=float(top.sum() / bottom.sum()), low=float(low), high=float(high), prompts=len(units)
    )

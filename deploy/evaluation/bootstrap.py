"""How sure a mean over prompts is: percentile bootstrap intervals, resampling prompts, not answers.

Answers to the same prompt are alike, so a prompt with all its answers is the unit that is drawn again.

    U = prompts, S = sampling seeds, D = bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

DRAWS = 2000
SHARE = 0.95

Reals = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean and its bootstrap interval."""

    mean: float
    low: float
    high: float
    prompts: int

    def disjoint_from(self, other: Interval) -> bool:
        """Whether the two intervals do not touch."""
        return self.low > other.high or other.low > self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """By how much a second model's mean exceeds a first one's on the same prompts."""

    mean: float
    low: float
    high: float
    p_value: float
    """Two-sided: twice the smaller share of draws on one side of 0, (k + 1) / (D + 1)."""
    prompts: int


@lru_cache(maxsize=4)
def resamples(units: int, draws: int = DRAWS, seed: int = 0) -> Reals:
    """How often each unit comes in each draw with replacement, [D, U]; every row adds up to U. Read-only."""
    drawn = np.random.default_rng(seed).integers(0, units, size=(draws, units))
    drawn += units * np.arange(draws)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=draws * units).reshape(draws, units).astype(np.float64)
    counts.flags.writeable = False
    return counts


def band(values: npt.NDArray[np.float64], fraction: float = SHARE) -> tuple[Reals, Reals]:
    """Lower and upper edge [...] of draws [D, ...]; draws without a value (nan) do not count."""
    edge = (1 - fraction) / 2
    known = ~np.isnan(values).all(0)
    low, high = np.full(values.shape[1:], np.nan), np.full(values.shape[1:], np.nan)
    if known.any():
        low[known], high[known] = np.nanquantile(values[:, known], [edge, 1 - edge], axis=0)
    return low, high


def ratio(top: npt.ArrayLike, bottom: npt.ArrayLike) -> Reals:
    """Top / bottom, nan where the bottom is 0."""
    above, below = np.broadcast_arrays(np.asarray(top, np.float64), np.asarray(bottom, np.float64))
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below != 0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tally:
    """Sums over answers by seed and prompt. Its value is the mean over seeds of sum(totals) / sum(counts).

    With counts = tokens a seed's value is a per-token mean over all answers; with counts = 1 a mean over
    answers.
    """

    prompt_ids: tuple[str, ...]  # [U]
    totals: Reals  # [S, U]
    counts: Reals  # [S, U]

    @classmethod
    def of(
        cls,
        prompt_ids: Sequence[str],
        seeds: Sequence[int],
        totals: npt.ArrayLike,
        counts: npt.ArrayLike,
    ) -> Tally:
        """Add up answers, given by their prompt, seed, total and count; at least one."""
        units, index = np.unique(np.asarray(prompt_ids), return_inverse=True)
        runs, row = np.unique(np.asarray(seeds), return_inverse=True)
        shape = len(runs), len(units)
        flat = row * len(units) + index

        def added(values: npt.ArrayLike) -> Reals:
            weights = np.asarray(values, dtype=np.float64)
            sums = np.bincount(flat, weights=weights, minlength=shape[0] * shape[1])
            return sums.astype(np.float64).reshape(shape)

        return cls(prompt_ids=tuple(units.tolist()), totals=added(totals), counts=added(counts))

    @property
    def prompts(self) -> int:
        """Prompts with anything to count."""
        return int((self.counts.sum(0) > 0).sum())

    def value(self) -> float:
        """The mean over seeds; nan if a seed has nothing to count."""
        return float(ratio(self.totals.sum(1), self.counts.sum(1)).mean())

    def draws(self, draws: int = DRAWS, seed: int = 0) -> Reals:
        """The value under each resampling of the prompts, [D]."""
        weights = resamples(len(self.prompt_ids), draws, seed)
        return ratio(weights @ self.totals.T, weights @ self.counts.T).mean(1)

    def interval(self, *, fraction: float = SHARE, draws: int = DRAWS, seed: int = 0) -> Interval:
        """The value with its interval; prompts are drawn with replacement, the same ones for every seed."""
        low, high = band(self.draws(draws, seed), fraction)
        return Interval(mean=self.value(), low=float(low), high=float(high), prompts=self.prompts)

    def only(self, prompt_ids: Sequence[str]) -> Tally:
        """The same for some of the prompts, in their order."""
        index = {prompt: i for i, prompt in enumerate(self.prompt_ids)}
        kept = [index[prompt] for prompt in prompt_ids]
        return Tally(prompt_ids=tuple(prompt_ids), totals=self.totals[:, kept], counts=self.counts[:, kept])


def ratio_interval(
    prompt_ids: Sequence[str],
    totals: npt.ArrayLike,
    counts: npt.ArrayLike,
    *,
    fraction: float = SHARE,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Interval of sum(totals) / sum(counts) over answers, prompts drawn with replacement."""
    tally = Tally.of(prompt_ids, [0] * len(prompt_ids), totals, counts)
    return tally.interval(fraction=fraction, draws=draws, seed=seed)


def paired_difference(
    first: Tally, second: Tally, *, fraction: float = SHARE, draws: int = DRAWS, seed: int = 0
) -> Difference | None:
    """Paired bootstrap test of second - first on the prompts that both answered; None if there are none.

    Both are resampled with the same prompts, so that what makes a prompt easy for both cancels out.
    """
    theirs = set(second.prompt_ids)
    common = [prompt for prompt in first.prompt_ids if prompt in theirs]
    if not common:
        return None
    first, second = first.only(common), second.only(common)
    differences = second.draws(draws, seed) - first.draws(draws, seed)
    low, high = band(differences, fraction)
    known = differences[~np.isnan(differences)]
    beyond = min(int((known <= 0).sum()), int((known >= 0).sum()))
    return Difference(
        mean=second.value() - first.value(),
        low=float(low),
        high=float(high),
        p_value=min(1.0, 2 * (beyond + 1) / (len(known) + 1)),
        prompts=len(common),
    )

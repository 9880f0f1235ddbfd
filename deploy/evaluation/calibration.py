"""Whether a model is as sure as it is right: label-word probabilities, reliability and calibration error.

N = examples, C = labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .bootstrap import DRAWS, SHARE, Interval, Reals, band, resamples

BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Examples whose confidence lies in (low, high]; the first bin holds 0 as well."""

    low: float
    high: float
    count: int
    confidence: float
    """Mean probability of the chosen label; nan in an empty bin."""
    accuracy: float
    """Share of right choices; nan in an empty bin."""


def label_probabilities(logprobs: npt.ArrayLike) -> tuple[Reals, Reals]:
    """Probabilities renormalised over the labels [N, C], and the mass [N] that the labels had before.

    Takes log-probs [N, C] in nats, of each label's first token or of its whole text. Little mass means that
    the model would have said something else, and that its preference among the labels says little.
    """
    logprobs = np.asarray(logprobs, np.float64)
    top = logprobs.max(1, keepdims=True)
    raised = np.exp(logprobs - top)
    total = raised.sum(1, keepdims=True)
    return raised / total, (np.exp(top) * total)[:, 0]


def choices(
    probabilities: Reals, labels: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Confidence [N] in the most probable label, and whether it is the right one [N]."""
    chosen = probabilities.argmax(1)
    return probabilities[np.arange(len(chosen)), chosen], chosen == np.asarray(labels)


def reliability(confidence: npt.ArrayLike, right: npt.ArrayLike, bins: int = BINS) -> tuple[Bin, ...]:
    """The table of a reliability diagram: `bins` bins of equal width over [0, 1]."""
    confidence, right = np.asarray(confidence, np.float64), np.asarray(right, np.float64)
    index, edges = _bundles(confidence, bins), np.linspace(0, 1, bins + 1)
    table = []
    for number in range(bins):
        inside = index == number
        table.append(
            Bin(
                low=float(edges[number]),
                high=float(edges[number + 1]),
                count=int(inside.sum()),
                confidence=float(confidence[inside].mean()) if inside.any() else float("nan"),
                accuracy=float(right[inside].mean()) if inside.any() else float("nan"),
            )
        )
    return tuple(table)


def calibration_error(
    confidence: npt.ArrayLike,
    right: npt.ArrayLike,
    *,
    bins: int = BINS,
    fraction: float = SHARE,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Expected calibration error: sum over bins of |B|/N |accuracy(B) - confidence(B)|, with its interval.

    In [0, 1]. The bootstrap resamples examples; since noise adds to an absolute value, the interval of a
    well calibrated model on few examples lies above its value's true size.
    """
    confidence, right = np.asarray(confidence, np.float64), np.asarray(right, np.float64)
    # |B| (accuracy - confidence) is the sum of (right - confidence) over the bin.
    gaps = np.zeros((len(confidence), bins))
    gaps[np.arange(len(confidence)), _bundles(confidence, bins)] = right - confidence
    low, high = band(np.abs(resamples(len(gaps), draws, seed) @ gaps).sum(1) / len(gaps), fraction)
    value = np.abs(gaps.sum(0)).sum() / len(gaps)
    return Interval(mean=float(value), low=float(low), high=float(high), prompts=len(gaps))


def _bundles(confidence: Reals, bins: int) -> npt.NDArray[np.int64]:
    # Rounded first: 0.3 x 10 is 3.0000000000000004 in some writings of 0.3, and would land a bin too high.
    return np.clip(np.ceil(np.round(confidence * bins, 9)) - 1, 0, bins - 1).astype(np.int64)

"""Signs of a collapse, read off token ids: the reverse KL falls even while a student degenerates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def _grams(ids: npt.NDArray[np.int32], n: int) -> list[bytes]:
    return [ids[i : i + n].tobytes() for i in range(len(ids) - n + 1)]


def distinct_n(answers: Sequence[npt.NDArray[np.int32]], n: int = 4) -> tuple[float, float]:
    """(distinct n-grams, all n-grams) over all answers together."""
    grams = [gram for ids in answers for gram in _grams(ids, n)]
    return float(len(set(grams))), float(len(grams))


def repetition(answers: Sequence[npt.NDArray[np.int32]], n: int = 4) -> tuple[float, float]:
    """(n-grams that their own answer had said before, all n-grams)."""
    repeated = total = 0
    for ids in answers:
        grams = _grams(ids, n)
        repeated += len(grams) - len(set(grams))
        total += len(grams)
    return float(repeated), float(total)

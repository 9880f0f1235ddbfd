"""Words of answers as numbers, so that models with different tokenizers can be compared by `health`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def words_as_ids(answers: Sequence[str]) -> list[npt.NDArray[np.int32]]:
    """Each answer's words, lower case, as numbers that are the same in all of these answers."""
    numbers: dict[str, int] = {}
    return [
        np.array([numbers.setdefault(word, len(numbers)) for word in answer.lower().split()], np.int32)
        for answer in answers
    ]

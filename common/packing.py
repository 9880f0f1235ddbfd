"""Token sequences of unlike length as the rows of one forward pass, with few slots wasted.

Sequences share rows: behind the end of one the next begins, its positions counted from 0 again. transformers
knows such rows by their positions and lets no token look into another sequence. A row is at most twice as
long as the longest sequence, since attention costs as much per token as its row is long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
ROOM = (1.0, 1.25, 1.5, 2.0)
"""Lengths of a row that are tried, in lengths of the longest sequence."""
GAIN = 0.98
"""A longer row must take less than this share of the slots that a shorter one takes."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Packed:
    """N sequences in R rows of L slots; slots that nothing fills hold 0."""

    ids: Ints
    """[R, L]"""
    starts: Ints
    """[N]: where in the flat [R * L] each sequence begins."""
    places: Ints | None
    """[R, L]: how far each slot is from the start of its sequence; None where each row holds one."""


def pack(sequences: Sequence[npt.NDArray[np.int32]], *, together: bool) -> Packed:
    """Lay sequences out; `together` lets them share rows. None at all are one row of one slot."""
    lengths = [len(sequence) for sequence in sequences]
    size = max(lengths, default=1)
    rows = list(range(len(lengths)))
    offsets = [0] * len(lengths)
    if together:
        for share in ROOM:
            tried = int(share * max(lengths, default=1))
            fitted = _first_fit(lengths, tried)
            wide = max((o + n for o, n in zip(fitted[1], lengths, strict=True)), default=1)
            if _count(fitted[0]) * wide < GAIN * _count(rows) * size:
                rows, offsets, size = *fitted, wide
    ids = np.zeros((_count(rows), size), np.int64)
    alone = rows == list(range(len(lengths)))
    places = None if alone else np.zeros_like(ids)
    for index in sorted(range(len(lengths)), key=offsets.__getitem__):
        row, begin, end = rows[index], offsets[index], offsets[index] + lengths[index]
        ids[row, begin:end] = sequences[index]
        if places is not None:  # so does what is left of the row, until another sequence is laid there
            places[row, begin:end] = np.arange(end - begin)
            places[row, end:] = np.arange(size - end)
    starts = np.array([row * size + offset for row, offset in zip(rows, offsets, strict=True)], np.int64)
    return Packed(ids=ids, starts=starts, places=places)


def _count(rows: Sequence[int]) -> int:
    return max(rows, default=0) + 1


def _first_fit(lengths: Sequence[int], size: int) -> tuple[list[int], list[int]]:
    """(row, offset in it) of each: the longest first, each into the first row that has room."""
    rows, offsets, used = [0] * len(lengths), [0] * len(lengths), list[int]()
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        row = next((r for r, taken in enumerate(used) if taken + lengths[index] <= size), len(used))
        if row == len(used):
            used.append(0)
        rows[index], offsets[index] = row, used[row]
        used[row] += lengths[index]
    return rows, offsets

"""Token sequences as the rows of one forward pass: what begins alike is read once, and few slots are wasted.

A row holds several sequences. Those that begin alike (a chat template, the answers to one prompt) share the
slots of what they have in common, and each goes on in slots of its own: a row is a forest of shared
beginnings. `places` count every token from the start of its own sequence, and `sees` lets it look at its own
sequence alone, so a causal model makes of each token what it makes of it in a row of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Tokens = npt.NDArray[np.int32]
DEAR_ROW = 2048
"""Slots of a row at which attention, which every slot pays for the whole row, costs as much as all else."""
GAIN = 0.97
"""Rows that are shared must cost less than this share of what they cost apart: a mask is not free."""
MOST_ROW = 4096
"""Slots of the longest row that is shared: a mask grows with its square."""
MOST_COUNTS = 16
"""Numbers of rows that are tried."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Packed:
    """N sequences in R rows of L slots; slots that nothing fills hold 0."""

    ids: Ints
    """[R, L]"""
    slots: tuple[Ints, ...]
    """Of each sequence, where in the flat [R * L] each of its tokens lies."""
    places: Ints | None
    """[R, L]: how far each token is from the start of its sequence; None where each row holds one."""
    sees: npt.NDArray[np.bool_] | None
    """[R, L, L]: which slots each slot looks at, itself among them; None where each row holds one."""

    @property
    def used(self) -> int:
        """Slots that hold a token."""
        return len(np.unique(np.concatenate(self.slots))) if self.slots else 0


def pack(sequences: Sequence[Tokens], *, together: int, most_slots: int | None = None) -> Packed:
    """Lay sequences out, in shared rows if none is longer than `together`. None at all are an empty slot.

    Takes the cheapest layout of at most `most_slots`, where there is one.
    """
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    longest = int(lengths.max(initial=1))
    if longest <= together and len(sequences) > 1:
        order = sorted(range(len(sequences)), key=lambda index: sequences[index].tolist())
        alike = [_alike(sequences[one], sequences[other]) for one, other in pairwise(order)]
        rows = _cheapest(lengths, _kinship(order, alike), most_slots)
        if rows is not None:
            return _lay_together(sequences, rows, order)
    ids = np.zeros((max(1, len(sequences)), longest), np.int64)
    for row, sequence in zip(ids, sequences, strict=False):
        row[: len(sequence)] = sequence
    slots = tuple(row * longest + np.arange(length) for row, length in enumerate(lengths))
    return Packed(ids=ids, slots=slots, places=None, sees=None)


def _alike(one: Tokens, other: Tokens) -> int:
    """How many tokens two sequences have in common before they part."""
    least = min(len(one), len(other))
    parted = np.flatnonzero(one[:least] != other[:least])
    return int(parted[0]) if len(parted) else least


def _kinship(order: Sequence[int], alike: Sequence[int]) -> Ints:
    """[N, N] tokens that each two sequences begin with: in a dictionary's order, the least between them."""
    kin = np.zeros((len(order), len(order)), np.int64)
    for first in range(len(alike)):
        least = np.minimum.accumulate(alike[first:])
        kin[order[first], order[first + 1 :]] = least
        kin[order[first + 1 :], order[first]] = least
    return kin


def _cheapest(lengths: Ints, kin: Ints, most_slots: int | None) -> list[int] | None:
    """The row of each sequence, for the number of rows that costs least; None: a row for each."""

    def price(slots: int, cost: float) -> tuple[int, float]:
        return (0 if most_slots is None or slots <= most_slots else slots), cost

    count, longest = len(lengths), int(lengths.max())
    # A row of one sequence is causal, and attention skips the half that is not seen.
    best = price(count * longest, GAIN * count * longest * (1 + longest / (2 * DEAR_ROW)))
    found = None
    for rows in _counts(count):
        dealt, size = _deal(lengths, kin, rows)
        offer = price(rows * size, rows * size * (1 + size / DEAR_ROW))
        if size <= MOST_ROW and offer < best:
            best, found = offer, dealt
    return found


def _counts(most: int) -> Iterable[int]:
    """1 to `most`, closer to each other where they are few."""
    if most <= MOST_COUNTS:
        return range(1, most + 1)
    return (int(rows) for rows in np.unique(np.geomspace(1, most, MOST_COUNTS).round()))


def _deal(lengths: Ints, kin: Ints, rows: int) -> tuple[list[int], int]:
    """(row of each, slots of the fullest): the longest first, each where its row stays shortest."""
    used, shared = np.zeros(rows, np.int64), np.zeros((rows, len(lengths)), np.int64)
    dealt = [0] * len(lengths)
    for index in np.argsort(-lengths, kind="stable"):
        grown = used + lengths[index] - shared[:, index]
        row = int(grown.argmin())
        dealt[index], used[row] = row, grown[row]
        np.maximum(shared[row], kin[index], out=shared[row])
    return dealt, int(used.max())


def _lay_together(sequences: Sequence[Tokens], rows: Sequence[int], order: Sequence[int]) -> Packed:
    """Sequences in the order of a dictionary, so that what one shares with its row lies in the one before."""
    paths: list[Ints] = [np.zeros(0, np.int64)] * len(sequences)
    last: dict[int, int] = {}
    used = [0] * (max(rows) + 1)
    for index in order:
        row, begin = rows[index], np.zeros(0, np.int64)
        if row in last:
            begin = paths[last[row]][: _alike(sequences[last[row]], sequences[index])]
        own = len(sequences[index]) - len(begin)
        paths[index] = np.concatenate([begin, used[row] + np.arange(own)])
        used[row] += own
        last[row] = index
    size = max(used)
    ids, places = np.zeros((2, len(used), size), np.int64)
    sees = np.repeat(np.eye(size, dtype=bool)[None], len(used), 0)
    for sequence, row, path in zip(sequences, rows, paths, strict=True):
        ids[row, path], places[row, path] = sequence, np.arange(len(path))
        sees[row][np.ix_(path, path)] = np.tri(len(path), dtype=bool)
    slots = tuple(row * size + path for row, path in zip(rows, paths, strict=True))
    return Packed(ids=ids, slots=slots, places=places, sees=sees)

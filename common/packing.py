"""Token sequences as one forward pass: what begins alike is read once, and no slot is empty.

Sequences that begin alike (a chat template, the answers to one prompt) share the slots of what they have in
common, and each goes on in slots of its own: a row is a forest of shared beginnings. `position_ids` count
every token from the start of its own sequence, and attention gathers each sequence's own slots (`groups`),
so a causal model makes of each token what it makes of it in a row of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Tokens = npt.NDArray[np.int32]
LIKE = 0.7
"""What the shortest sequence of a group has of the longest, at least: attention costs their squares."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shared:
    """How N sequences lie in one row of S slots."""

    position_ids: Ints
    """[S]: how far each token is from the start of its sequence."""
    groups: tuple[Ints, ...]
    """[n, l] each: the slots of n sequences of like length, the last slot again behind shorter ones' ends."""
    owners: Ints
    """[S]: where in the flat groups, one after the other, each slot is found."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Packed:
    """N sequences in R rows of L slots; slots that nothing fills hold 0."""

    ids: Ints
    """[R, L]"""
    slots: tuple[Ints, ...]
    """Of each sequence, where in the flat [R * L] each of its tokens lies."""
    shared: Shared | None = None
    """None where each sequence has a row of its own; else there is one row, and no empty slot."""

    @property
    def used(self) -> int:
        """Slots that hold a token."""
        return self.ids.size if self.shared else sum(map(len, self.slots))


def pack(sequences: Sequence[Tokens], *, max_packed_len: int) -> Packed:
    """Lay sequences out; in one shared row where that is shorter and none is longer than `max_packed_len`.

    None at all are an empty slot.
    """
    longest = max(map(len, sequences), default=1)
    if longest <= max_packed_len:
        packed = _pack_shared(sequences)
        if packed.ids.size < len(sequences) * longest:
            return packed
    ids = np.zeros((max(1, len(sequences)), longest), np.int64)
    for row, sequence in zip(ids, sequences, strict=False):
        row[: len(sequence)] = sequence
    slots = tuple(row * longest + np.arange(len(sequence)) for row, sequence in enumerate(sequences))
    return Packed(ids=ids, slots=slots)


def _pack_shared(sequences: Sequence[Tokens]) -> Packed:
    """In the order of a dictionary, where what one shares with any before it lies in the one before."""
    paths: list[Ints] = [np.zeros(0, np.int64)] * len(sequences)
    ids, position_ids = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    before, used = None, 0
    for index in sorted(range(len(sequences)), key=lambda index: sequences[index].tolist()):
        sequence = sequences[index]
        alike = 0 if before is None else _alike(sequences[before], sequence)
        own = len(sequence) - alike
        begin = paths[before][:alike] if before is not None else paths[index]
        paths[index] = np.concatenate([begin, used + np.arange(own)])
        ids.append(sequence[alike:].astype(np.int64))
        position_ids.append(alike + np.arange(own))
        before, used = index, used + own
    groups, owners, flat = [], np.zeros(used, np.int64), 0
    for run in _runs([len(path) for path in paths]):
        group = [paths[index] for index in run]
        longest = len(group[0])
        groups.append(np.stack([np.pad(path, (0, longest - len(path)), "edge") for path in group]))
        for path in group:
            owners[path] = flat + np.arange(len(path))
            flat += longest
    shared = Shared(position_ids=np.concatenate(position_ids), groups=tuple(groups), owners=owners)
    return Packed(ids=np.concatenate(ids)[None], slots=tuple(paths), shared=shared)


def _alike(one: Tokens, other: Tokens) -> int:
    """How many tokens two sequences have in common before they part."""
    least = min(len(one), len(other))
    parted = np.flatnonzero(one[:least] != other[:least])
    return int(parted[0]) if len(parted) else least


def _runs(lengths: Sequence[int]) -> list[list[int]]:
    """Sequences of like length, the longest first."""
    runs: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if not runs or lengths[index] < LIKE * lengths[runs[-1][0]]:
            runs.append([])
        runs[-1].append(index)
    return runs

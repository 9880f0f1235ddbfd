"""Sequences in shared rows: each is there whole, counts from 0, and little is wasted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from minillm_ray.common.packing import pack


def sequences(lengths: list[int]) -> list[np.ndarray]:
    return [np.arange(1, n + 1, dtype=np.int32) + 100 * i for i, n in enumerate(lengths)]


@given(st.lists(st.integers(1, 40), max_size=30), st.booleans())
def test_every_sequence_lies_whole_in_one_row_and_its_places_count_from_zero(
    lengths: list[int], together: bool
) -> None:
    given_ = sequences(lengths)
    packed = pack(given_, together=together)
    rows, size = packed.ids.shape
    covered = np.zeros(rows * size, bool)
    for sequence, start in zip(given_, packed.starts, strict=True):
        here = slice(start, start + len(sequence))
        assert start // size == (start + len(sequence) - 1) // size
        assert packed.ids.reshape(-1)[here].tolist() == sequence.tolist()
        assert not covered[here].any()
        covered[here] = True
        if packed.places is not None:
            assert packed.places.reshape(-1)[here].tolist() == list(range(len(sequence)))
    assert (packed.ids.reshape(-1)[~covered] == 0).all()
    assert rows * size <= max(1, len(lengths)) * max(lengths, default=1)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_where_another_begins_the_count_starts_again(lengths: list[int]) -> None:
    packed = pack(sequences(lengths), together=True)
    if packed.places is None:
        assert len(packed.ids) == len(lengths)
        return
    breaks = np.diff(packed.places, axis=1) != 1
    begins = {int(start) for start in packed.starts}
    for row, column in zip(*np.nonzero(breaks), strict=True):
        # A new count is a new sequence, or what is left of the row.
        start = int(row) * packed.ids.shape[1] + int(column) + 1
        assert start in begins or (packed.ids[row, column + 1 :] == 0).all()


def test_equal_lengths_and_single_sequences_keep_a_row_each_in_order() -> None:
    for lengths in ([5], [7, 7, 7], [9, 8, 9]):
        packed = pack(sequences(lengths), together=True)
        assert packed.places is None
        assert packed.starts.tolist() == [n * max(lengths) for n in range(len(lengths))]
    assert pack([], together=True).ids.tolist() == [[0]]


@pytest.mark.parametrize("count", [32, 128])
def test_of_log_normal_lengths_less_than_a_twentieth_is_wasted(count: int) -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        lengths = np.clip(draw.lognormal(np.log(64), 0.8, count), 8, 512).astype(int).tolist()
        packed = pack(sequences(lengths), together=True)
        alone = count * max(lengths)
        assert packed.ids.size < alone
        if count >= 128:
            assert sum(lengths) / packed.ids.size > 0.95

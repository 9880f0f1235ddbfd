"""Sequences in shared rows: each is there whole, sees itself alone, and little is read twice or wasted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from minillm_ray.common.packing import LIKE, pack

ANY = 10_000
WORDS = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=12), max_size=12)


def sequences(lengths: list[int]) -> list[np.ndarray]:
    """All different from their first token on."""
    return [np.arange(1, n + 1, dtype=np.int32) + 1000 * i for i, n in enumerate(lengths)]


def arrays(words: list[list[int]]) -> list[np.ndarray]:
    return [np.array(word, np.int32) for word in words]


@given(WORDS, st.sampled_from([0, ANY]))
def test_every_token_of_every_sequence_lies_in_its_slot_in_one_row(
    words: list[list[int]], max_packed_len: int
) -> None:
    packed = pack(arrays(words), max_packed_len=max_packed_len)
    rows, size = packed.ids.shape
    filled = np.zeros(rows * size, bool)
    for word, slots in zip(words, packed.slots, strict=True):
        assert packed.ids.reshape(-1)[slots].tolist() == word
        assert len({int(slot) // size for slot in slots}) == 1
        filled[slots] = True
    assert (packed.ids.reshape(-1)[~filled] == 0).all()
    assert packed.used == filled.sum()
    assert rows * size <= max(1, len(words)) * max(map(len, words), default=1)
    assert packed.shared is None or filled.all()


@given(WORDS)
def test_a_token_sees_what_comes_before_it_in_its_own_sequence_and_nothing_else(
    words: list[list[int]],
) -> None:
    packed = pack(arrays(words), max_packed_len=ANY)
    if packed.shared is None:
        return
    for word, slots in zip(words, packed.slots, strict=True):
        assert packed.shared.position_ids[slots].tolist() == list(range(len(word)))
    rows = [row.tolist() for group in packed.shared.groups for row in group]
    assert sorted(map(tuple, rows)) == sorted(
        tuple([*slots, *[slots[-1]] * (len(row) - len(slots))])
        for row, slots in zip(rows, _in_order_of(packed.slots), strict=True)
    )
    flat = [(row, index) for row in rows for index in range(len(row))]
    for slot, owner in enumerate(packed.shared.owners):
        row, index = flat[owner]
        assert row[index] == slot
        assert index == packed.shared.position_ids[slot], "what is behind an end has seen it more than once"


def _in_order_of(slots: tuple[np.ndarray, ...]) -> list[np.ndarray]:
    """As groups hold them: the longest first."""
    return sorted(slots, key=len, reverse=True)


def test_what_sequences_begin_with_alike_is_laid_once() -> None:
    system, first, second = list(range(1, 31)), [50, 51], [60, 61, 62]
    words = [[*system, *prompt, *answer] for prompt in (first, second) for answer in ([7, 8], [7, 9], [9, 8])]
    packed = pack(arrays(words), max_packed_len=ANY)
    assert packed.ids.shape[0] == 1
    assert packed.used == 30 + (2 + 5) + (3 + 5)
    assert packed.slots[0][:33].tolist() == packed.slots[1][:33].tolist()
    assert packed.slots[0][33] != packed.slots[1][33]


def test_the_same_sequence_twice_is_read_once() -> None:
    packed = pack(arrays([[1, 2, 3], [1, 2, 3], [4]]), max_packed_len=ANY)
    assert packed.slots[0].tolist() == packed.slots[1].tolist()


def test_equal_lengths_with_nothing_in_common_keep_a_row_each_in_order() -> None:
    for lengths in ([5], [200, 200, 200]):
        packed = pack(sequences(lengths), max_packed_len=ANY)
        assert packed.shared is None
        assert [slots[0] for slots in packed.slots] == [n * max(lengths) for n in range(len(lengths))]
    assert pack([], max_packed_len=ANY).ids.tolist() == [[0]]


def test_a_sequence_longer_than_may_share_keeps_all_apart() -> None:
    words = arrays([[1, 2, 3], [1, 2], [1, 2, 4]])
    assert pack(words, max_packed_len=2).shared is None
    assert pack(words, max_packed_len=3).shared is not None


@given(st.lists(st.integers(1, 900), min_size=2, max_size=12))
def test_attention_pays_for_no_more_than_sequences_of_like_length(lengths: list[int]) -> None:
    packed = pack(sequences(lengths), max_packed_len=ANY)
    if packed.shared is None:
        assert len(set(lengths)) == 1
        return
    assert sum(len(group) for group in packed.shared.groups) == len(lengths)
    squares = sum(group.shape[0] * group.shape[1] ** 2 for group in packed.shared.groups)
    assert squares <= sum(length**2 for length in lengths) / LIKE**2
    assert len(packed.shared.groups) <= 1 + np.log(max(lengths) / min(lengths)) / -np.log(LIKE)


@pytest.mark.parametrize("count", [8, 32, 128])
def test_of_log_normal_lengths_less_than_a_twentieth_is_wasted(count: int) -> None:
    draw = np.random.default_rng(0)
    used = slots = 0
    for _ in range(20):
        lengths = np.clip(draw.lognormal(np.log(64), 0.8, count), 8, 512).astype(int).tolist()
        packed = pack(sequences(lengths), max_packed_len=ANY)
        used, slots = used + packed.used, slots + packed.ids.size
    assert used / slots > 0.95

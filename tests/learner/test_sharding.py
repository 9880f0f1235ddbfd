"""Sharding answers over ranks and micro-batches, by lengths alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from minillm_ray.learner.sharding import Item, Totals, shard_batch, shard_step

LENGTHS = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), max_size=40)
RANKS = st.integers(1, 5)
MICRO_BATCH = st.integers(1, 9)


def items_of(lengths: list[tuple[int, int]]) -> list[Item]:
    return [Item(chunk="c", position=n, prompt_tokens=p, answer_tokens=t) for n, (p, t) in enumerate(lengths)]


@given(LENGTHS, RANKS, MICRO_BATCH)
def test_every_item_goes_to_one_rank_and_can_be_traced_back(
    lengths: list[tuple[int, int]], ranks: int, micro_batch_size: int
) -> None:
    items = items_of(lengths)
    shards = shard_batch(items, world_size=ranks, micro_batch_size=micro_batch_size)
    sharded = [item for shard in shards for run in shard.micro_batches for item in run]
    order = [index for shard in shards for index in shard.order]
    assert [items[index] for index in order] == sharded
    assert sorted(order) == list(range(len(items)))


@given(LENGTHS, RANKS, MICRO_BATCH)
def test_all_ranks_make_the_same_number_of_forwards_none_too_large_or_needless(
    lengths: list[tuple[int, int]], ranks: int, micro_batch_size: int
) -> None:
    shards = shard_batch(items_of(lengths), world_size=ranks, micro_batch_size=micro_batch_size)
    even_share = -(-len(lengths) // ranks)
    assert {len(shard.micro_batches) for shard in shards} == {-(-even_share // micro_batch_size)}
    assert all(len(run) <= micro_batch_size for shard in shards for run in shard.micro_batches)


@given(LENGTHS, RANKS, MICRO_BATCH)
def test_totals_are_those_of_the_whole_step(
    lengths: list[tuple[int, int]], ranks: int, micro_batch_size: int
) -> None:
    want = Totals(answers=len(lengths), answer_tokens=sum(t for _, t in lengths))
    for shard in shard_batch(items_of(lengths), world_size=ranks, micro_batch_size=micro_batch_size):
        assert shard.totals == want


def test_ranks_get_even_loads_and_micro_batches_like_lengths() -> None:
    lengths = [(10, n) for n in range(1, 33)]
    shards = shard_batch(items_of(lengths), world_size=2, micro_batch_size=4)
    loads = [
        sum(i.prompt_tokens + i.answer_tokens for run in shard.micro_batches for i in run) for shard in shards
    ]
    assert abs(loads[0] - loads[1]) <= 2
    for shard in shards:
        spreads = [max(i.answer_tokens for i in run) - min(i.answer_tokens for i in run)
                   for run in shard.micro_batches]  # fmt: skip
        assert max(spreads) <= 8


def test_a_rank_without_an_answer_still_takes_part() -> None:
    shards = shard_batch(items_of([(2, 3)]), world_size=3, micro_batch_size=2)
    assert [len(shard.micro_batches[0]) for shard in shards] == [1, 0, 0]


def test_texts_have_totals_of_their_own() -> None:
    answers, texts = items_of([(2, 3), (2, 4)]), items_of([(1, 10), (1, 10), (1, 10)])
    for rank_batch in shard_step(answers, texts, world_size=2, micro_batch_size=1):
        assert rank_batch.answers.totals == Totals(answers=2, answer_tokens=7)
        assert rank_batch.texts.totals == Totals(answers=3, answer_tokens=30)
        assert (len(rank_batch.answers.micro_batches), len(rank_batch.texts.micro_batches)) == (1, 2)


def test_a_step_without_texts_has_no_micro_batches_of_them() -> None:
    assert shard_step(items_of([(2, 3)]), [], world_size=1, micro_batch_size=1)[0].texts.micro_batches == ()


def test_the_divisor_counts_tokens_or_sequences() -> None:
    totals = Totals(answers=3, answer_tokens=30)
    assert (totals.divisor("tokens"), totals.divisor("sequences")) == (30, 3)
    assert Totals().divisor("tokens") == 1

"""Shards the answers of one optimiser step over ranks and micro-batches, by their lengths alone.

Ranks get about the same number of tokens, all the same number of micro-batches (under ZeRO-3 a rank with
fewer forwards would leave the others waiting for ever), and the totals of the whole step: losses divided by
those give the same gradient however the step was split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One answer (or block of text): where it is stored and how long it is, without its tokens."""

    chunk: Any
    """Reference to a list of Scored or Passage in the object store; this module does not know Ray."""
    position: int
    """Index in that list."""
    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Sizes of a whole optimiser step, over all ranks and micro-batches."""

    answers: int = 0
    answer_tokens: int = 0

    def divisor(self, reduction: str) -> int:
        """What the sum of token losses is divided by: `tokens` or `sequences`; at least 1."""
        return max(1, self.answer_tokens if reduction == "tokens" else self.answers)


MicroBatch = tuple[Item, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankItems:
    """What one rank gets of one kind of item."""

    micro_batches: tuple[MicroBatch, ...]
    """Of similar lengths each; some may be empty, so that all ranks have equally many."""
    order: tuple[int, ...]
    """Index of each item in the list that was sharded, in the order of the micro-batches."""
    totals: Totals
    """Of all ranks together."""

    @property
    def items(self) -> tuple[Item, ...]:
        """All of them, micro-batch after micro-batch."""
        return tuple(item for micro_batch in self.micro_batches for item in micro_batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankBatch:
    """What one rank does in one optimiser step."""

    answers: RankItems
    texts: RankItems


def shard_batch(items: Sequence[Item], *, world_size: int, micro_batch_size: int) -> list[RankItems]:
    """The items of each rank; deterministic, and every item is in exactly one rank's.

    The longest items go first, each to the rank with the fewest tokens so far that has not reached its even
    number of answers. A rank's items are then cut into micro-batches of neighbouring lengths.
    """
    totals = Totals(answers=len(items), answer_tokens=sum(item.answer_tokens for item in items))
    most = -(-len(items) // world_size)
    shards: list[list[int]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for index in _longest_first(items):
        rank = min((r for r in range(world_size) if len(shards[r]) < most), key=lambda r: (loads[r], r))
        shards[rank].append(index)
        loads[rank] += _tokens(items[index])
    num_micro_batches = -(-most // micro_batch_size)
    found = []
    for shard in shards:
        cuts = [len(shard) * n // max(1, num_micro_batches) for n in range(num_micro_batches + 1)]
        runs = [shard[low:high] for low, high in pairwise(cuts)]
        found.append(
            RankItems(
                micro_batches=tuple(tuple(items[index] for index in run) for run in runs),
                order=tuple(shard),
                totals=totals,
            )
        )
    return found


def shard_step(
    answers: Sequence[Item], texts: Sequence[Item], *, world_size: int, micro_batch_size: int
) -> list[RankBatch]:
    """What each rank does in one optimiser step; answers and texts are sharded separately."""
    by_rank = zip(
        shard_batch(answers, world_size=world_size, micro_batch_size=micro_batch_size),
        shard_batch(texts, world_size=world_size, micro_batch_size=micro_batch_size),
        strict=True,
    )
    return [RankBatch(answers=a, texts=t) for a, t in by_rank]


def _tokens(item: Item) -> int:
    return item.prompt_tokens + item.answer_tokens


def _longest_first(items: Sequence[Item]) -> list[int]:
    return sorted(range(len(items)), key=lambda index: (-_tokens(items[index]), index))

"""Deals the answers of one optimiser step to ranks and micro-batches, from their lengths alone.

Ranks get as even a load of tokens as is easily had, all the same number of micro-batches (under ZeRO-3 a rank
with fewer forwards would leave the others waiting for ever), and the totals of the whole step: losses divided
by those give the same gradient however the step was split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One answer (or block of text): where it lies and how long it is; its tokens stay where they are."""

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
    """Of like lengths each; some may be empty, so that all ranks have equally many."""
    order: tuple[int, ...]
    """Index of each item in the list that was dealt, in the order of the micro-batches."""
    totals: Totals
    """Of all ranks together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankBatch:
    """What one rank does in one optimiser step."""

    answers: RankItems
    texts: RankItems


def shard_batch(items: Sequence[Item], *, world_size: int, micro_batch_size: int) -> list[RankItems]:
    """One hand for each rank; deterministic, and every item is in exactly one.

    The longest items go first, each to the rank with the fewest tokens so far that still has room for
    one of its even share of answers. A hand's items are then cut into runs of neighbouring length.
    """
    totals = Totals(answers=len(items), answer_tokens=sum(item.answer_tokens for item in items))
    room = -(-len(items) // world_size)
    piles: list[list[int]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for index in _longest_first(items):
        rank = min((r for r in range(world_size) if len(piles[r]) < room), key=lambda r: (loads[r], r))
        piles[rank].append(index)
        loads[rank] += _tokens(items[index])
    rounds = -(-room // micro_batch_size)
    all_items = []
    for pile in piles:
        cuts = [len(pile) * n // max(1, rounds) for n in range(rounds + 1)]
        runs = [pile[low:high] for low, high in pairwise(cuts)]
        all_items.append(
            RankItems(
                micro_batches=tuple(tuple(items[index] for index in run) for run in runs),
                order=tuple(pile),
                totals=totals,
            )
        )
    return all_items


def shard_step(
    answers: Sequence[Item], texts: Sequence[Item], *, world_size: int, micro_batch_size: int
) -> list[RankBatch]:
    """One share of an optimiser step for each rank; answers and texts are dealt apart."""
    dealt_answers = shard_batch(answers, world_size=world_size, micro_batch_size=micro_batch_size)
    dealt_texts = shard_batch(texts, world_size=world_size, micro_batch_size=micro_batch_size)
    return [RankBatch(answers=a, texts=t) for a, t in zip(dealt_answers, dealt_texts, strict=True)]


def _tokens(item: Item) -> int:
    return item.prompt_tokens + item.answer_tokens


def _longest_first(items: Sequence[Item]) -> list[int]:
    return sorted(range(len(items)), key=lambda index: (-_tokens(items[index]), index))

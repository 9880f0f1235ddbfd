"""Token slots that answers of very different lengths leave empty, from dealing to rows. Runs no model."""

from __future__ import annotations

import numpy as np

from ..common.packing import Ints, Tokens, pack
from ..learner.sharding import Item, shard_batch
from .ground import MICRO_BATCH, Cell, Values

ANSWERS, STEPS = 64, 20
SHARED, PROMPT = 24, 43
"""Tokens of a prompt, and how many of them SmolLM2's chat template puts before every prompt."""
ANY_LENGTH = 1 << 30


def padding() -> Values:
    """By number of ranks: shares of empty slots, in rows and in attention; the fullest rank over the mean."""
    return {f"{ranks}_ranks": _of_ranks(ranks) for ranks in (1, 2, 4)}


def slots_of(cell: Cell, max_packed_len: int = MICRO_BATCH) -> int:
    """Token slots of a set in the race where so many answers at a time share their prompts' beginning.

    In the learner those of a micro-batch do, in teacher and engine all of the set.
    """
    run = _passages(np.full(max_packed_len, cell.tokens), np.random.default_rng(0))
    return pack(run, max_packed_len=ANY_LENGTH).ids.size * cell.answers // max_packed_len


def _passages(lengths: Ints, draw: np.random.Generator) -> list[Tokens]:
    """Inputs of answers of these lengths, with no word in common behind the template."""
    template, own = np.arange(SHARED), PROMPT - SHARED - 1
    return [
        np.concatenate([template, draw.integers(100, 40_000, own + length)]).astype(np.int32)
        for length in lengths
    ]


def _of_ranks(ranks: int) -> Values:
    draw = np.random.default_rng(0)
    slots = used = gathered = tokens = 0
    uneven = []
    for _ in range(STEPS):
        lengths = np.clip(draw.lognormal(np.log(64), 0.8, ANSWERS), 8, 512).astype(int)
        passages = _passages(lengths, draw)
        items = [
            Item(chunk=None, position=index, prompt_tokens=PROMPT, answer_tokens=int(length))
            for index, length in enumerate(lengths)
        ]
        shards = shard_batch(items, world_size=ranks, micro_batch_size=MICRO_BATCH)
        for run in (run for shard in shards for run in shard.micro_batches):
            packed = pack([passages[item.position] for item in run], max_packed_len=ANY_LENGTH)
            slots, used = slots + packed.ids.size, used + packed.used
            if packed.shared is not None:
                gathered += sum(group.size for group in packed.shared.groups)
                tokens += sum(map(len, packed.slots))
        loads = [sum(lengths[index] + PROMPT for index in shard.order) for shard in shards]
        uneven.append(max(loads) / np.mean(loads))
    waste, of_attention = 1 - used / slots, 1 - tokens / gathered
    return {"waste": waste, "attention_waste": of_attention, "fullest_rank": float(np.mean(uneven))}

"""What a run is fed with: prompts, given answers and plain text, each from a cursor one can come back to.

Given answers and text are put into the object store here, in pieces, so that they travel as sampled ones do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

import numpy as np
import ray

from ...common.config.run import RunConfig
from ...common.errors import DataError
from ...common.types import BatchSummary, Dropped, Passage, Prompt
from ..runtime.pool import Chunk, chunked
from .tokenize import load_blocks, load_passages, load_prompts


class DataStreams:
    """All data of a run, loaded. Raises DataError for what cannot be used."""

    def __init__(self, config: RunConfig):
        self._piece, self._samples = config.rollout.chunk, config.rollout.num_generations
        self.dropped: list[Dropped] = []
        self.validation: Sequence[Prompt] = ()
        self.test: Sequence[Prompt] = ()
        self.validation_answers: Sequence[Passage] = ()
        """Given answers, where their loss chooses the best student."""
        self._prompts: PromptStream[Prompt] | None = None
        self._answers: PromptStream[Passage] | None = None
        self._text: PromptStream[Passage] | None = None
        seed, shuffle = config.seed, config.data.shuffle
        if config.sampled_answers:
            kept = self._kept(load_prompts(config, "train"))
            self._prompts = PromptStream(kept, seed=seed, shuffle=shuffle)
        if config.text_alone:
            assert config.text is not None, "text alone is text"
            blocks, held = load_blocks(config).split(config.text.validation_blocks)
            self._answers, self.validation_answers = PromptStream(blocks, seed=seed), list(held)
        elif config.given_answers:
            kept = self._kept(load_passages(config, "train"))
            self._answers = PromptStream(kept, seed=seed + bool(self._prompts), shuffle=shuffle)
        if config.text is not None and config.objective.kind != "sft":  # fine-tuning has no term for it
            self._text = PromptStream(load_blocks(config), seed=seed)
        if config.data.validation is not None:
            if config.validation.metric == "loss":
                self.validation_answers = self._kept(load_passages(config, "validation"))
            else:
                self.validation = self._kept(load_prompts(config, "validation"))
        if config.data.test is not None:
            self.test = self._kept(load_prompts(config, "test"))

    def take_prompts(self, count: int) -> list[Prompt]:
        """The next prompts to answer."""
        assert self._prompts is not None, "this run learns from given answers"
        return offset_samples(self._prompts.take(count), self._samples)

    def take_answers(self, count: int) -> list[Chunk]:
        """The next given answers, in the object store."""
        assert self._answers is not None, "this run learns from sampled answers"
        return self.put(self._answers.take(count))

    def take_text(self, count: int) -> list[Chunk]:
        """The next blocks of plain text, in the object store; none where the run has no text."""
        return self.put(self._text.take(count)) if self._text else []

    def put(self, passages: Sequence[Passage]) -> list[Chunk]:
        """Passages into the object store, in pieces."""
        return [
            Chunk(ref=ray.put(list(piece)), summary=BatchSummary.of(piece))
            for piece in chunked(passages, self._piece)
        ]

    def cursors(self) -> dict[str, dict[str, int]]:
        """Where prompts, answers and text stand, of those that the run has."""
        return {name: stream.state() for name, stream in self._streams().items()}

    def move_to(self, cursors: Mapping[str, Mapping[str, int]]) -> None:
        """Go on from `cursors` of an earlier process."""
        for name, stream in self._streams().items():
            stream.move_to(cursors[name])

    def _streams(self) -> dict[str, PromptStream[Any]]:
        found = {"prompts": self._prompts, "answers": self._answers, "text": self._text}
        return {name: stream for name, stream in found.items() if stream is not None}

    def _kept(self, kept):
        self.dropped += kept.dropped
        return kept.items


def offset_samples(prompts: Sequence[Prompt], samples: int) -> list[Prompt]:
    """The prompts; one that comes again gets other sample numbers, and so answers of its own."""
    seen: Counter[str] = Counter()
    found = []
    for prompt in prompts:
        found.append(replace(prompt, first_sample=samples * seen[prompt.id]) if seen[prompt.id] else prompt)
        seen[prompt.id] += 1
    return found


T = TypeVar("T")


class PromptStream(Generic[T]):
    """Items without end: pass after pass over the same ones, each pass in an order of its own.

    The order of pass k depends on (seed, k) alone, so that one number says where the stream stands.
    """

    def __init__(self, items: Sequence[T], *, seed: int, shuffle: bool = True):
        """Raises DataError if there is nothing to draw."""
        if not len(items):
            raise DataError("a stream of prompts needs at least one; look at the data of this run")
        self._items, self._seed, self._shuffle = items, seed, shuffle
        self._cursor = 0
        self._pass = -1
        self._order: Sequence[int] = ()

    @property
    def cursor(self) -> int:
        """Items handed out so far."""
        return self._cursor

    def take(self, count: int) -> list[T]:
        """The next `count` items; more than a pass holds brings items again."""
        return [self._next() for _ in range(count)]

    def state(self) -> dict[str, int]:
        """Where the stream stands, for `move_to` of a stream over the same items."""
        return {"cursor": self._cursor, "size": len(self._items), "seed": self._seed}

    def move_to(self, state: Mapping[str, int]) -> None:
        """Go on where `state` was taken. Raises DataError if that was another stream."""
        here = self.state()
        for name in ("size", "seed"):
            if state[name] != here[name]:
                raise DataError(
                    f"the stream of prompts was saved with {name} = {state[name]} and has now"
                    f" {name} = {here[name]}; resume with the data and seed that the run began with"
                )
        self._cursor = state["cursor"]

    def _next(self) -> T:
        number, index = divmod(self._cursor, len(self._items))
        if number != self._pass:
            self._pass, self._order = number, self._order_of(number)
        self._cursor += 1
        return self._items[self._order[index]]

    def _order_of(self, number: int) -> Sequence[int]:
        if not self._shuffle:
            return range(len(self._items))
        return np.random.default_rng([self._seed, number]).permutation(len(self._items)).tolist()

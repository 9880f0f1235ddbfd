"""The streams of a run: prompts, given answers and plain text, each with a cursor that resuming restores.

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
from ...common.errors import ABSENT, DataError, Fault
from ...common.types import BatchSummary, Passage, Prompt
from ..runtime.pool import Chunk, chunked
from .load import RunData, is_text


class DataStreams:
    """The data of a run as endless streams to learn from, and what it is measured on."""

    def __init__(self, data: RunData, *, seed: int, shuffle: bool, chunk: int, num_generations: int):
        """`chunk` passages travel as one piece; each prompt is answered `num_generations` times."""
        self._chunk, self._samples = chunk, num_generations
        self.validation, self.test = data.validation, data.test
        self.answer_format = data.answer_format
        """How the data ends answers."""
        self.validation_answers = data.validation_answers
        """Given answers, where their loss chooses the best student."""
        self._prompts: PromptStream[Prompt] | None = None
        self._answers: PromptStream[Passage] | None = None
        self._text: PromptStream[Passage] | None = None
        if data.prompts:
            self._prompts = PromptStream(data.prompts, seed=seed, shuffle=shuffle)
        if data.answers:
            # Beside prompts of the same records, answers come in another order.
            self._answers = PromptStream(
                data.answers, seed=seed + bool(data.prompts), shuffle=shuffle or is_text(data.answers)
            )
        if data.text:
            self._text = PromptStream(data.text, seed=seed)

    @classmethod
    def of_run(cls, config: RunConfig, data: RunData) -> DataStreams:
        """Those of a run, by its settings."""
        return cls(
            data,
            seed=config.seed,
            shuffle=config.data.shuffle,
            chunk=config.rollout.chunk,
            num_generations=config.rollout.num_generations,
        )

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
            for piece in chunked(passages, self._chunk)
        ]

    def cursors(self) -> dict[str, dict[str, int]]:
        """Where prompts, answers and text stand, of those that the run has."""
        return {name: stream.state() for name, stream in self._streams().items()}

    def move_to(self, cursors: Mapping[str, Mapping[str, int]]) -> None:
        """Continue from the `cursors` of an earlier process."""
        for name, stream in self._streams().items():
            stream.move_to(cursors[name])

    def _streams(self) -> dict[str, PromptStream[Any]]:
        found = {"prompts": self._prompts, "answers": self._answers, "text": self._text}
        return {name: stream for name, stream in found.items() if stream is not None}


def offset_samples(prompts: Sequence[Prompt], samples: int) -> list[Prompt]:
    """The prompts; a repeated one gets other sample numbers, and so other answers."""
    seen: Counter[str] = Counter()
    found = []
    for prompt in prompts:
        found.append(replace(prompt, first_sample=samples * seen[prompt.id]) if seen[prompt.id] else prompt)
        seen[prompt.id] += 1
    return found


T = TypeVar("T")


class PromptStream(Generic[T]):
    """Items without end: pass after pass over the same items, each pass in its own order.

    The order of pass k depends on (seed, k) alone, so that one number is the position of the stream.
    """

    def __init__(self, items: Sequence[T], *, seed: int, shuffle: bool = True):
        """Raises DataError if there is nothing to draw."""
        if not len(items):
            raise DataError("a stream of prompts needs at least one; check the data of this run")
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
                    Fault(
                        "",
                        ABSENT,
                        f"the stream of prompts was saved with {name} = {state[name]} and now has"
                        f" {name} = {here[name]}",
                        "resume with the data and seed that the run began with",
                    )
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

"""How a record becomes the text of a prompt, and the endless stream in which prompts are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np

from .errors import DataError

T = TypeVar("T")

ALPACA_ALONE = (
    "Below is an instruction that describes a task."
    " Write a response that appropriately completes the request."
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context."
    " Write a response that appropriately completes the request."
)


def alpaca(instruction: str, further: str = "") -> str:
    """The template of the paper (its appendix, after Stanford Alpaca); no input block where there is none."""
    head = ALPACA_WITH_INPUT if further else ALPACA_ALONE
    block = f"### Input:\n{further}\n\n" if further else ""
    return f"{head}\n\n### Instruction:\n{instruction}\n\n{block}### Response:\n"


def plain(instruction: str, further: str = "") -> str:
    """The instruction as it is, and its input on the next line."""
    return f"{instruction}\n{further}" if further else instruction


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
        number, place = divmod(self._cursor, len(self._items))
        if number != self._pass:
            self._pass, self._order = number, self._order_of(number)
        self._cursor += 1
        return self._items[self._order[place]]

    def _order_of(self, number: int) -> Sequence[int]:
        if not self._shuffle:
            return range(len(self._items))
        return np.random.default_rng([self._seed, number]).permutation(len(self._items)).tolist()

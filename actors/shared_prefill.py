"""Common prefixes of the prompts of one step go through the networks once.

vLLM shares whole blocks of its cache among requests; the rest of a chat template, or of a prompt that has
several answers, would be computed again by each request. A causal network gives the same states for tokens
with the same prefix, so they are computed as one row here. Only attention, which writes the keys and values
of every request to the request's own blocks, sees a row for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..common.packing import Ints, Tokens, pack

Requests = tuple[Sequence[Tokens], Ints]
"""Of each request of a step, in order: all tokens up to the last that the step computes, and how many of
them are computed already."""


@dataclass(frozen=True, eq=False)
class Alike:
    """Which of N rows are the same, and are U."""

    first: Tensor
    """[U]: the row that is computed for each."""
    owners: Tensor
    """[N]: which of the U each row is."""

    def all_rows(self, value: Any) -> Any:
        """U rows as all N; what is no tensor of rows as it is."""
        if isinstance(value, torch.Size):
            return torch.Size((len(self.owners), *value[1:]))
        return value.index_select(0, self.owners) if isinstance(value, Tensor) else value


def rows_alike(sequences: Sequence[Tokens], computed: Ints) -> tuple[Ints, Ints] | None:
    """(first [U], owners [N]) of the rows behind `computed` tokens of each sequence; None if all differ.

    A sequence with a single row is under way already, and on its own: most steps have dozens of those.
    """
    begin = [number for number, tokens in enumerate(sequences) if len(tokens) - computed[number] > 1]
    if len(begin) < 2:
        return None
    slots = [np.full(1, -1 - number) for number in range(len(sequences))]
    beginning = [sequences[number] for number in begin]
    for number, path in zip(
        begin, pack(beginning, max_packed_len=max(map(len, beginning))).slots, strict=True
    ):
        slots[number] = path[computed[number] :]
    _, first, owners = np.unique(np.concatenate(slots), return_index=True, return_inverse=True)
    return None if len(first) == len(owners) else (first, owners)


def find_alike(input_ids: Tensor, requests: Requests) -> Alike | None:
    """What of a step's rows [N] is the same; None where nothing is, or no request asked for these rows."""
    sequences, computed = requests
    if (found := rows_alike(sequences, computed)) is None:
        return None
    rows = [sequence[start:] for sequence, start in zip(sequences, computed, strict=True)]
    if not np.array_equal(np.concatenate(rows), input_ids.cpu().numpy()):
        return None
    first, owners = (torch.from_numpy(indices).to(input_ids.device) for indices in found)
    return Alike(first, owners)


class SharedPrefill:
    """The steps of a model of vLLM's whose layers of attention are all plain and causal.

    Each layer's `forward` is replaced, and not hooked, since vLLM's models of transformers call it past
    hooks. Rows are shared only once every layer that a step needs has been reached that way.
    """

    def __init__(self, layers: Mapping[str, Sequence[nn.Module]], requests: Callable[[], Requests]):
        self._requests = requests
        self._alike: Alike | None = None
        self._reached: set[nn.Module] = set()
        self._layers = {name: list(of_one) for name, of_one in layers.items()}
        self.on = True
        """False once a network's step has gone past one of its layers."""
        for layer in chain.from_iterable(self._layers.values()):
            layer.forward = self._with_all_rows(layer, layer.forward)

    @contextmanager
    def rows(
        self, input_ids: Tensor, positions: Tensor, networks: Sequence[str]
    ) -> Iterator[tuple[Tensor, Tensor, Alike | None]]:
        """The ids and positions [U] for `networks` to compute, while their layers see all rows [N].

        And which rows are alike; None where all are computed.
        """
        layers = list(chain.from_iterable(self._layers[name] for name in networks))
        known = self._reached.issuperset(layers)
        if not self.on or not known or (alike := find_alike(input_ids, self._requests())) is None:
            yield input_ids, positions, None
            self.on = self.on and self._reached.issuperset(layers)
            return
        self._alike = alike
        try:
            yield input_ids[alike.first], positions[alike.first], alike
        finally:
            self._alike = None

    def _with_all_rows(self, layer: nn.Module, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def attend(*args: Any, **more: Any) -> Tensor:
            self._reached.add(layer)
            if (alike := self._alike) is None:
                return forward(*args, **more)
            found = forward(
                *map(alike.all_rows, args), **{name: alike.all_rows(value) for name, value in more.items()}
            )
            return found.index_select(0, alike.first)

        return attend

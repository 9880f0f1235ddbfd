"""Common prefixes of the prompts of one step go through the networks once.

vLLM shares whole blocks of its cache among requests; the rest of a chat template, or of a prompt that has
several answers, would be computed again by each request. A causal network gives the same states for tokens
with the same prefix, so they are computed as one row here. Only attention, which writes the keys and values
of every request to the request's own blocks, sees a row for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
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

    @contextmanager
    def expanded_in(self, layers: Sequence[nn.Module]) -> Iterator[None]:
        """Let these layers, which are given U rows, work on all N and give U back."""
        with ExitStack() as hooks:
            for layer in layers:
                for hook in (
                    layer.register_forward_pre_hook(self._expand, with_kwargs=True),
                    layer.register_forward_hook(lambda _, __, found: found.index_select(0, self.first)),
                ):
                    hooks.callback(hook.remove)
            yield

    def _expand(self, _: nn.Module, args: Any, more: Any) -> Any:
        return tuple(map(self._all_rows, args)), {name: self._all_rows(value) for name, value in more.items()}

    def _all_rows(self, value: Any) -> Any:
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
    """The steps of a model of vLLM's whose layers of attention are all plain and causal."""

    def __init__(self, layers: Sequence[nn.Module], requests: Callable[[], Requests]):
        self._layers, self._requests = layers, requests

    @contextmanager
    def rows(self, input_ids: Tensor, positions: Tensor) -> Iterator[tuple[Tensor, Tensor, Alike | None]]:
        """The ids and positions [U] to compute, while the layers see all rows [N], and which are alike."""
        if (alike := find_alike(input_ids, self._requests())) is None:
            yield input_ids, positions, None
            return
        with alike.expanded_in(self._layers):
            yield input_ids[alike.first], positions[alike.first], alike

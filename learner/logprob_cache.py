"""The teacher's log-probs over the whole vocabulary, cached over the passes over one set of answers.

The teacher is frozen, so that each pass would compute the same product with its output layer.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class CachedRows:
    """The table's rows of one micro-batch: either all can be read, or all are to be written."""

    table: Tensor
    """[M, V] of the whole set."""
    rows: Tensor
    """int64 [N]: the row of each answer position."""
    known: bool

    def read(self, tokens: slice) -> Tensor:
        """A copy of log p [n, V] at these positions."""
        return self.table.index_select(0, self.rows[tokens])

    def write(self, tokens: slice, log_p: Tensor) -> None:
        """Store log p [n, V] of these positions."""
        self.table.index_copy_(0, self.rows[tokens], log_p)


class TeacherLogprobCache:
    """log p at so many answer positions of one set, in float32."""

    def __init__(self, positions: int, vocabulary: int, device: torch.device):
        self._table = torch.empty(positions, vocabulary, device=device)  # memory is taken as it is written
        self._begin: dict[Hashable, int] = {}
        self._used = 0

    def rows(self, answers: Sequence[tuple[Hashable, int]]) -> CachedRows | None:
        """Rows of these answers, by key and number of tokens; None if some are not known or it is full.

        Whoever gets rows that are not known must write all of them before anyone asks for them again.
        """
        if not answers:
            return None
        new = [(key, length) for key, length in answers if key not in self._begin]
        if new and (len(new) < len(answers) or self._used + sum(n for _, n in new) > len(self._table)):
            return None
        for key, length in new:
            self._begin[key] = self._used
            self._used += length
        rows = [torch.arange(self._begin[key], self._begin[key] + length) for key, length in answers]
        return CachedRows(table=self._table, rows=torch.cat(rows).to(self._table.device), known=not new)

    def release(self) -> None:
        """Forget all rows; those of the next set take their place."""
        self._begin.clear()
        self._used = 0

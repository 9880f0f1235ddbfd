"""One copy of the teacher in one Ray process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ray

from ..common.config import ModelConfig, ScoringConfig
from ..common.imports import collector_paused
from ..common.messages import BatchSummary, Passage, Scored

if TYPE_CHECKING:
    from .scorer import Scorer


@ray.remote(max_restarts=0)  # a lost actor is for the driver to judge; others take over its work
class TeacherActor:
    """A mailbox around `Scorer`. Call `score` with `num_returns=2`: hidden states never meet the driver."""

    def __init__(
        self,
        name: str,
        teacher: ModelConfig,
        settings: ScoringConfig,
        vocabulary: int,
        threads: int | None = None,
    ):
        self._name, self._teacher, self._settings = name, teacher, settings
        self._vocabulary, self._threads = vocabulary, threads

    def __repr__(self) -> str:
        return self._name

    def ready(self) -> dict[str, int | str]:
        """Load the teacher; facts for the log once it stands. Call it first, once. Raises ModelError."""
        with collector_paused():  # heavy: only this process needs it
            import torch

            from .scorer import Scorer

        if self._threads is not None:
            torch.set_num_threads(self._threads)
        self._scorer: Scorer = Scorer.load(
            self._teacher.path, self._teacher.revision, self._settings, self._vocabulary
        )
        return {"name": self._name, "pid": os.getpid()}

    def head(self) -> dict[str, Any]:
        """See Scorer.head; the caller keeps the reference, one copy stands in the object store."""
        return self._scorer.head()

    def states_gap(self, given: Sequence[Scored]) -> float:
        """See Scorer.states_gap, of the first."""
        return self._scorer.states_gap(given[0])

    def score(
        self,
        passages: Sequence[Passage | Scored],
        temperature: float,
        *,
        with_hidden: bool,
        with_logprobs: bool,
    ) -> tuple[list[Scored], BatchSummary]:
        """See Scorer.score; what has been scored by another is scored anew."""
        unread = [one.passage if isinstance(one, Scored) else one for one in passages]
        return self._scorer.score(
            unread, temperature=temperature, with_hidden=with_hidden, with_logprobs=with_logprobs
        )

"""One copy of the teacher in one Ray process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ray

from ..common.config import ScoringConfig
from ..common.messages import BatchSummary, Passage, Scored

if TYPE_CHECKING:
    from .scorer import Scorer


@ray.remote(max_restarts=0)  # a lost actor is for the driver to judge; others take over its work
class TeacherActor:
    """A mailbox around `Scorer`. Call `score` with `num_returns=2`: hidden states never meet the driver."""

    def __init__(
        self,
        name: str,
        teacher_path: str,
        revision: str | None,
        settings: ScoringConfig,
        vocabulary: int,
        threads: int | None = None,
    ):
        import torch  # heavy: only this process needs it

        from .scorer import Scorer

        if threads is not None:
            torch.set_num_threads(threads)
        self._name = name
        self._scorer: Scorer = Scorer.load(teacher_path, revision, settings, vocabulary)

    def __repr__(self) -> str:
        return self._name

    def ready(self) -> dict[str, int | str]:
        """Facts for the log, once the teacher is loaded."""
        return {"name": self._name, "pid": os.getpid()}

    def head(self) -> dict[str, Any]:
        """See Scorer.head; the caller keeps the reference, one copy stands in the object store."""
        return self._scorer.head()

    def score(
        self, passages: Sequence[Passage], temperature: float, with_hidden: bool
    ) -> tuple[list[Scored], BatchSummary]:
        """See Scorer.score."""
        return self._scorer.score(passages, temperature=temperature, with_hidden=with_hidden)

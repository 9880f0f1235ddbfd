"""Ray shell around the grader: one process beside the driver that reads a model's answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import ray

from ..common.config import ModelConfig
from ..common.messages import Rollout
from .grader import Graded, Grader


@ray.remote(max_restarts=0)
class GraderActor:
    """A mailbox in front of `Grader`; answers arrive through the object store."""

    def __init__(self, name: str, model: ModelConfig):
        self._name, self._model = name, model

    def __repr__(self) -> str:
        return self._name

    def ready(self) -> str:
        """Load the tokenizer. Call it first, once."""
        from transformers import AutoTokenizer  # heavy: only this process needs it

        self._grader = Grader(AutoTokenizer.from_pretrained(self._model.path, revision=self._model.revision))
        return self._name

    def grade(
        self,
        seed: int,
        prompts: Mapping[str, str],
        references: Mapping[str, Sequence[str]],
        rule: str | None,
        file: Path,
        *chunks: Sequence[Rollout],
    ) -> Graded:
        """See Grader.grade."""
        rollouts = [rollout for chunk in chunks for rollout in chunk]
        return self._grader.grade(
            rollouts, seed=seed, prompts=prompts, references=references, rule=rule, file=file
        )

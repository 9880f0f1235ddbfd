"""Ray shell around the grader: one process beside the driver that reads a model's answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import ray

from ..common.messages import Rollout
from .grader import Graded, Grader
from .writer import Decodes


@ray.remote(max_restarts=0)
class GraderActor:
    """A mailbox in front of `Grader`; answers arrive through the object store, as does the tokenizer."""

    def __init__(self, name: str, tokenizer: Decodes):
        self._name = name
        self._grader = Grader(tokenizer)

    def __repr__(self) -> str:
        return self._name

    def ready(self) -> str:
        """Answers once this process runs."""
        return self._name

    def become(self, tokenizer: Decodes) -> None:
        """Read another model's answers from now on."""
        self._grader = Grader(tokenizer)

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

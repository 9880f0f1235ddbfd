"""Ray shell around the writer of answers to a data set: one process that keeps them as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import ray

from ..common.messages import Rollout
from .answer_parts import Joined, PartsWriter, Question, join
from .writer import Decodes


@ray.remote(max_restarts=0)
class PartsActor:
    """A mailbox in front of `PartsWriter`; the tokenizer comes as an object."""

    def __init__(self, name: str, tokenizer: Decodes, folder: str):
        self._name, self._folder = name, Path(folder)
        self._writer = PartsWriter(tokenizer, self._folder)

    def __repr__(self) -> str:
        return self._name

    def ready(self) -> str:
        """Answers once this process runs."""
        return self._name

    def write(self, first: int, questions: Mapping[str, Question], rollouts: Sequence[Rollout]) -> int:
        """See PartsWriter.write; answers arrive through the object store."""
        return self._writer.write(first, questions, rollouts)

    def join(self, keep_cut: bool) -> Joined:
        """See answer_parts.join."""
        return join(self._folder, keep_cut=keep_cut)

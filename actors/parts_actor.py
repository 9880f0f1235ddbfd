"""Ray shell around the writer of answers to a data set: one process that keeps them as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import ray

from ..common.config import ModelConfig
from ..common.messages import Rollout
from .answer_parts import Joined, PartsWriter, Question, join


@ray.remote(max_restarts=0)
class PartsActor:
    """A mailbox in front of `PartsWriter`."""

    def __init__(self, name: str, model: ModelConfig, folder: str):
        self._name, self._model, self._folder = name, model, Path(folder)

    def __repr__(self) -> str:
        return self._name

    def ready(self) -> str:
        """Load the tokenizer. Call it first, once."""
        from transformers import AutoTokenizer  # heavy: only this process needs it

        tokenizer = AutoTokenizer.from_pretrained(self._model.path, revision=self._model.revision)
        self._writer = PartsWriter(tokenizer, self._folder)
        return self._name

    def write(self, first: int, questions: Mapping[str, Question], rollouts: Sequence[Rollout]) -> int:
        """See PartsWriter.write; answers arrive through the object store."""
        return self._writer.write(first, questions, rollouts)

    def join(self, keep_cut: bool) -> Joined:
        """See answer_parts.join."""
        return join(self._folder, keep_cut=keep_cut)

"""Ray shell around the writer: one process that turns answers into files and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import ray

from ..common.messages import Rollout, Scored
from ..common.metrics import Metrics
from .writer import AnswerScore, Decodes, Writer


@ray.remote(max_restarts=0)
class WriterActor:
    """A mailbox in front of `Writer`.

    The tokenizer comes as an object: one that is read here would bring torch with it, seconds and 400 MB.
    """

    def __init__(self, name: str, tokenizer: Decodes, folder: str):
        self._name = name
        self._writer = Writer(tokenizer, Path(folder))

    def __repr__(self) -> str:
        return self._name

    def ready(self) -> str:
        """Answers once this process runs."""
        return self._name

    def write(self, number: int, version: int, *chunks: Sequence[Scored]) -> Metrics:
        """See Writer.write; chunks arrive through the object store."""
        return self._writer.write(number, [s for chunk in chunks for s in chunk], version)

    def score(self, references: Mapping[str, Sequence[str]], *chunks: Sequence[Rollout]) -> list[AnswerScore]:
        """See Writer.score."""
        return self._writer.score([r for chunk in chunks for r in chunk], references)

    def read(self, rollouts: Sequence[Rollout], most: int) -> list[tuple[str, int, str]]:
        """(prompt id, sample, text) of the first answers to `most` prompts, for a person to look at."""
        first = [rollout for rollout in rollouts if rollout.sample == 0][:most]
        return [(r.prompt_id, r.sample, self._writer.text(r.answer_ids)) for r in first]

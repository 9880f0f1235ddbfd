"""One measurer in one Ray process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import ray

from ..common.config import ModelConfig, ScoringConfig
from ..common.imports import collector_paused
from ..common.messages import BatchSummary, Ids, Passage, Prompt

if TYPE_CHECKING:
    from .measurer import LabelLogprobs, Measurer, PassageMeasure


@ray.remote(max_restarts=0)  # others take over its work; nothing but time is lost with it
class MeasurerActor:
    """A mailbox around `Measurer`. Call `measure` and `choose` with `num_returns=2`."""

    def __init__(
        self,
        name: str,
        model: ModelConfig,
        teacher: ModelConfig | None,
        settings: ScoringConfig,
        vocabulary: int,
        threads: int | None = None,
    ):
        self._name, self._model, self._teacher, self._settings = name, model, teacher, settings
        self._vocabulary, self._threads = vocabulary, threads

    def __repr__(self) -> str:
        return self._name

    def ready(self) -> dict[str, int | str]:
        """Load the models; facts for the log once they stand. Call it first, once. Raises ModelError."""
        with collector_paused():  # heavy: only this process needs it
            import torch

            from .measurer import Measurer

        if self._threads is not None:
            torch.set_num_threads(self._threads)
        self._measurer: Measurer = Measurer.load(self._model, self._teacher, self._settings, self._vocabulary)
        return {"name": self._name, "pid": os.getpid()}

    def become(self, model: ModelConfig) -> None:
        """Read with another model from now on, beside the same teacher. Raises ModelError."""
        from .scorer import load_model

        self._measurer.become(load_model(model.path, model.revision, self._settings.precision, "student"))

    def measure(
        self, passages: Sequence[Passage], compare: bool
    ) -> tuple[list[PassageMeasure], BatchSummary]:
        """See Measurer.measure."""
        return self._measurer.measure(passages, compare=compare)

    def choose(
        self, prompts: Sequence[Prompt], labels: Sequence[Ids]
    ) -> tuple[list[LabelLogprobs], BatchSummary]:
        """See Measurer.choose."""
        return self._measurer.choose(prompts, labels)

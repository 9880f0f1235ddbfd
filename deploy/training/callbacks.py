"""What a caller from Python may do while a run works: be told of each step, and ask it to stop.

class StopEarly(Callback):
    def on_evaluate(self, state: TrainState) -> object:
        return STOP if state.metrics["validation/reverse_kl"] < 0.5 else None

train("run.yaml", callbacks=[StopEarly()])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Literal

Moment = Literal["on_start", "on_step", "on_evaluate", "on_save", "on_end"]
MOMENTS: tuple[Moment, ...] = ("on_start", "on_step", "on_evaluate", "on_save", "on_end")


class Signal(Enum):
    """What a callback may return; it says its name when printed."""

    STOP = "STOP"


STOP = Signal.STOP
"""Ends the run behind the set of answers that it is learning from: with a checkpoint, and `last` exported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainState:
    """Where a run stands."""

    output_dir: Path
    step: int
    """Optimiser steps made."""
    max_steps: int
    set: int
    """Sets of answers that were learned from to their end."""
    version: int
    """Weight publications."""
    metrics: Mapping[str, float]
    """The latest value of every metric so far, by the names of the catalogue."""
    best_step: int
    """Step of the best student so far."""
    best_value: float | None
    """Its validation value; None before the first measurement."""


class Callback:
    """A base to derive from. Any method may be left out, and all but `on_end` may return STOP."""

    def on_start(self, state: TrainState) -> object:
        """All actors are ready and nothing is measured or learned yet, or a resumed run is as it was."""

    def on_step(self, state: TrainState) -> object:
        """An optimiser step was made."""

    def on_evaluate(self, state: TrainState) -> object:
        """The student was measured on validation prompts."""

    def on_save(self, state: TrainState) -> object:
        """A checkpoint is complete."""

    def on_end(self, state: TrainState) -> object:
        """The last student is exported; the actors still stand."""


class CallbackList:
    """All callbacks of a run as one, and who of them asked it to stop."""

    def __init__(self, callbacks: Sequence[object]):
        """Takes objects that have any of the five methods. Raises TypeError for one that has none."""
        for callback in callbacks:
            if not any(callable(getattr(callback, moment, None)) for moment in MOMENTS):
                raise TypeError(
                    f"{callback!r} is no callback: it has none of {', '.join(MOMENTS)}; derive from"
                    " minillm_ray.Callback, and pass an object, not a class or function"
                )
        self._callbacks = list(callbacks)
        self.stopped_by: str | None = None
        """The class of the callback that asked the run to stop; None while none has."""

    def call(self, moment: Moment, state: TrainState) -> None:
        """Tell all of them, in their order."""
        for callback in self._callbacks:
            method = getattr(callback, moment, None)
            if method is not None and method(state) is STOP and self.stopped_by is None:
                self.stopped_by = type(callback).__name__

"""Callbacks are told of each moment, and one that says STOP is remembered by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from minillm_ray.deploy.training.callbacks import MOMENTS, STOP, Callback, CallbackList, TrainState

STATE = TrainState(
    output_dir=Path("runs/x"), step=3, max_steps=8, set=1, version=1, metrics={}, best_step=0, best_value=None
)


class Notes(Callback):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []

    def on_step(self, state: TrainState) -> None:
        self.heard.append(("on_step", state.step))

    def on_save(self, state: TrainState) -> None:
        self.heard.append(("on_save", state.step))


class OnlyEvaluates:
    """Derives from nothing, and has one method."""

    def on_evaluate(self, state: TrainState) -> object:
        return STOP


def test_every_callback_hears_of_the_moments_that_it_has_a_method_for():
    one, other = Notes(), Notes()
    callbacks = CallbackList([one, OnlyEvaluates(), other])
    for moment in MOMENTS:
        callbacks.call(moment, STATE)
    assert one.heard == other.heard == [("on_step", 3), ("on_save", 3)]


def test_the_first_that_says_stop_is_the_one_that_is_named():
    callbacks = CallbackList([Notes(), OnlyEvaluates()])
    callbacks.call("on_step", STATE)
    assert callbacks.stopped_by is None
    callbacks.call("on_evaluate", STATE)
    assert callbacks.stopped_by == "OnlyEvaluates"


@pytest.mark.parametrize("answer", [True, "STOP", "stop", 1])
def test_nothing_but_stop_itself_stops_a_run(answer):
    class Says(Callback):
        def on_step(self, state: TrainState) -> object:
            return answer

    callbacks = CallbackList([Says()])
    callbacks.call("on_step", STATE)
    assert callbacks.stopped_by is None


@pytest.mark.parametrize("wrong", [print, object(), "on_step"])
def test_what_has_none_of_the_methods_is_refused(wrong):
    with pytest.raises(TypeError, match="has none of on_start, on_step"):
        CallbackList([wrong])

"""Metrics go to metrics.jsonl and to every sink that the settings name, ours or a plugin's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from minillm_ray.common.config.base import METRICS_SINKS
from minillm_ray.common.errors import ConfigError
from minillm_ray.deploy.training.metrics_log import MetricsLog, read_metrics
from minillm_ray.deploy.training.sinks import SINKS, SinkContext, known_sinks, make_sinks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


class ListSink:
    """Keeps what it is given."""

    def __init__(self, context: SinkContext | None = None):
        self.context, self.given = context, []

    def record(self, step: int, values: Mapping[str, float]) -> None:
        self.given.append((step, dict(values)))

    def event(self, kind: str, facts: Mapping[str, Any]) -> None:
        self.given.append((kind, dict(facts)))

    def close(self) -> None:
        self.given.append("closed")


def context(folder: Path, resumed_at: int | None = None) -> SinkContext:
    return SinkContext(output_dir=folder, run="tiny", config={}, resumed_at=resumed_at)


def test_the_file_and_every_sink_get_the_same_values_and_events(tmp_path):
    one, other = ListSink(), ListSink()
    log = MetricsLog(tmp_path, [one, other])
    log.record(1, {"learner/loss": 0.5}, version=0)
    log.event("warning", step=1, text="short answers")
    log.close()
    values, event = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (values["step"], values["version"], values["learner/loss"]) == (1, 0, 0.5)
    assert (event["event"], event["text"]) == ("warning", "short answers")
    expected = [(1, {"learner/loss": 0.5}), ("warning", {"step": 1, "text": "short answers"}), "closed"]
    assert one.given == other.given == expected


def test_a_name_that_is_not_in_the_catalogue_is_an_error_and_reaches_nobody(tmp_path):
    sink = ListSink()
    log = MetricsLog(tmp_path, [sink])
    with pytest.raises(KeyError, match="learner/lots"):
        log.record(1, {"learner/lots": 1.0})
    log.close()
    assert read_metrics(tmp_path) == []
    assert sink.given == ["closed"]


def curve(folder: Path) -> list[tuple[int, float]]:
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    return [(point.step, point.value) for point in board.Scalars("learner/loss")]


def test_tensorboard_shows_the_curve_and_a_resumed_run_writes_the_later_steps_anew(tmp_path):
    for resumed_at, steps, value in ((None, (1, 2, 3), 1.0), (1, (2, 3), 2.0)):
        (sink,) = make_sinks(["tensorboard"], context(tmp_path, resumed_at))
        for step in steps:
            sink.record(step, {"learner/loss": value})
        sink.close()
    assert curve(tmp_path) == [(1, 1.0), (2, 2.0), (3, 2.0)]


def test_a_module_of_the_run_file_brings_a_sink_by_name(tmp_path, monkeypatch):
    (tmp_path / "sinks_of_this_test.py").write_text(
        "class Sink:\n"
        "    def __init__(self, context):\n        self.file = context.output_dir / 'mine.txt'\n"
        "    def record(self, step, values):\n        self.file.write_text(f'{step} {values}')\n"
        "    def event(self, kind, facts):\n        pass\n"
        "    def close(self):\n        pass\n"
        "metrics_sinks = {'mine': Sink}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert known_sinks(["sinks_of_this_test"])[-1] == "mine"
    (sink,) = make_sinks(["mine"], context(tmp_path), ["sinks_of_this_test"])
    sink.record(2, {"learner/lr": 0.1})
    assert (tmp_path / "mine.txt").read_text() == "2 {'learner/lr': 0.1}"


def test_the_settings_know_the_sinks_that_the_package_brings():
    assert tuple(SINKS) == METRICS_SINKS


def test_a_sink_that_nobody_offers_is_refused_with_those_that_are_known(tmp_path):
    with pytest.raises(ConfigError, match="metrics_sinks = wandbee is unknown"):
        make_sinks(["wandbee"], context(tmp_path))

"""A run goes on with the data that it began with, and with no other."""

from __future__ import annotations

import json

import pytest
from minillm_ray.common.errors import DataError
from minillm_ray.deploy.data.record import keep_record
from minillm_ray.deploy.preflight.check import check_run
from minillm_ray.deploy.training import launch
from minillm_ray.deploy.training.run_dir import RunDir, RunState
from minillm_ray.tests.tiny_models import tiny_model
from minillm_ray.tests.tiny_runs import tiny_run, write_questions
from rich.console import Console


class Started(Exception):
    """The run would now reserve machines."""


def test_a_resumed_run_refuses_other_data_before_machines_are_reserved(tmp_path, monkeypatch):
    def start(*_: object) -> None:
        raise Started

    monkeypatch.setattr(launch, "cluster", start)
    model, questions = tiny_model("llama", tmp_path / "model"), write_questions(tmp_path / "questions.jsonl")
    config = tiny_run(model, model, questions, tmp_path / "run")
    plan = check_run(config)
    keep_record(config.output_dir, plan.data.started, plan.data.sets())
    RunDir(config.output_dir).complete_checkpoint(RunState(step=2), keep=1)
    with pytest.raises(Started):
        launch.continue_run(config, Console(quiet=True))
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    rows[3]["instruction"] += "!"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        DataError, match=r"data\.train differs from what the work in .* first in train/3; bring"
    ):
        launch.continue_run(config, Console(quiet=True))

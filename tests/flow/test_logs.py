"""One answer is followed by its name through the log files of every process that had it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from minillm_ray.common import logs
from minillm_ray.common.errors import ClusterError
from minillm_ray.deploy.api import train
from minillm_ray.deploy.training.metrics_log import FILE
from minillm_ray.tests.tiny_runs import tiny_run

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow]


def lines_of(run: Path) -> list[dict[str, Any]]:
    """Every line of every process, in the order of time."""
    files = sorted((run / "logs").glob("*.jsonl"))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return sorted(lines, key=lambda line: line["at"])


@pytest.fixture(scope="module")
def run(ray_cluster, tiny_pair, questions, tmp_path_factory) -> Path:
    """A run whose teacher reads every answer by itself."""
    folder = tmp_path_factory.mktemp("logs") / "run"
    teacher, student = tiny_pair
    train(tiny_run(teacher, student, questions, folder, teacher_server={"reuse": False}), progress=False)
    return folder


def test_every_process_writes_a_file_of_its_own_and_every_line_says_who_and_when(run):
    names = {"driver", "writer", "rollout-0", "teacher-0", "learner-0", "learner-1"}
    assert {file.stem for file in (run / "logs").glob("*.jsonl")} == names
    for line in lines_of(run):
        assert line["actor"] in names
        assert line["run"] == "run"
        assert {"at", "level", "pid", "logger"} <= set(line)
        assert "event" in line or "message" in line


def test_an_answer_is_followed_from_the_draw_to_the_step(run):
    lines = lines_of(run)
    answer = next(line["ids"][0] for line in lines if line.get("event") == "drew")
    walk = [
        (line["actor"], line["event"], line.get("step")) for line in lines if answer in line.get("ids", ())
    ]
    events = [event for _, event, _ in walk]
    assert events[:3] == ["drew", "set drawn", "scored"]
    assert "wrote" in events
    trained = [(actor, step) for actor, event, step in walk if event == "trained"]
    assert {actor for actor, _ in trained} <= {"learner-0", "learner-1"}
    assert [step for _, step in trained] == [1, 2]  # both inner epochs of its set, on one rank each
    pids = {line["actor"]: line["pid"] for line in lines}
    assert len(set(pids.values())) == len(pids)


def test_what_a_process_is_made_of_is_in_its_log_and_in_the_metrics_file(run):
    kept = [json.loads(line) for line in (run / FILE).read_text().splitlines()]
    workers = {line["name"]: line for line in kept if line.get("event") == "worker"}
    assert set(workers) == {"writer", "rollout-0", "teacher-0", "learner-0", "learner-1"}
    assert workers["rollout-0"]["versions"]["vllm"]
    assert all(worker["sees_run_dir"] for worker in workers.values())
    ready = [line for line in lines_of(run) if line.get("event") == "ready"]
    assert {line["facts"]["name"] for line in ready} == set(workers)


def test_a_run_whose_learner_does_not_see_its_folder_is_refused(
    ray_cluster, tiny_pair, questions, tmp_path, monkeypatch
):
    """As on a machine that has a folder of the same name on a disk of its own: the marker is not in it."""
    start = logs.start_run_logs

    def on_another_disk(run_dir: Path, *more: Any) -> logs.LogTarget:
        target = start(run_dir, *more)
        target.marker.unlink()
        return target

    monkeypatch.setattr(logs, "start_run_logs", on_another_disk)
    teacher, student = tiny_pair
    config = tiny_run(teacher, student, questions, tmp_path / "run", objective={"kind": "sft"})
    with pytest.raises(ClusterError, match=r"is not seen by learner-0 on .*every machine mounts"):
        train(config, progress=False)

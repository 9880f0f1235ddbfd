"""A run that loses an actor, or is stopped by a loss that is no number and resumed, ends as if it had not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from minillm_ray.common.errors import ModelError, NonFiniteLoss
from minillm_ray.deploy.api import resume, train
from minillm_ray.deploy.training.metrics_log import read_metrics
from minillm_ray.tests.tiny_models import tiny_model
from minillm_ray.tests.tiny_runs import tiny_run
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(300), pytest.mark.slow]


@dataclass(frozen=True)
class Stopped:
    """A run that was stopped after two steps, could not go on, and then could."""

    folder: Path
    complaint: str
    kept: list[str]
    """Checkpoints when it could not go on."""


@pytest.fixture(scope="module")
def bereft(ray_cluster, tiny_pair, questions, tmp_path_factory) -> Path:
    """Folder of a run that lost one of its two rollout actors after the first set of answers."""
    folder = tmp_path_factory.mktemp("bereft") / "run"
    teacher, student = tiny_pair
    config = tiny_run(teacher, student, questions, folder, rollout={"num_engines": 2})
    killer = threading.Thread(target=kill_after_first_set, args=("rollout-1", folder))
    killer.start()
    train(config)
    killer.join()
    return folder


def kill_after_first_set(name: str, run: Path) -> None:
    """End the actor's process once the run has drawn its first answers."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if (run / "metrics.jsonl").exists() and read_metrics(run):
            actor: Any = ray.get_actor(name)
            pid: Any = ray.get(actor.__ray_call__.remote(lambda self: os.getpid()))
            os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.01)


@pytest.fixture(scope="module")
def stopped(ray_cluster, tiny_pair, questions, tmp_path_factory) -> Stopped:
    folder = tmp_path_factory.mktemp("stopped")
    teacher = shutil.copytree(tiny_pair[0], folder / "teacher")
    run = folder / "run"
    # Probes would find a damaged teacher at the start: here it is let in.
    lenient = {"referee": False, "within": 0.0}
    asked = tiny_run(teacher, tiny_pair[1], questions, run, learner={**STEPS, "max_steps": 2}, verify=lenient)
    train(asked)
    settings = run / "config.yaml"
    settings.write_text(settings.read_text().replace("max_steps: 2", "max_steps: 4"))
    poison(teacher, "d")
    with pytest.raises(NonFiniteLoss) as complaint:
        resume(run)
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    shutil.copytree(tiny_pair[0], teacher, dirs_exist_ok=True)
    resume(run)
    return Stopped(run, str(complaint.value), kept)


STEPS = {
    "world_size": 2,
    "batch_size": 8,
    "micro_batch_size": 2,
    "num_iterations": 2,
    "optimizer": {"lr": 1e-3},
}


def poison(model: Path, letters: str) -> None:
    """A weight file that knows these letters by no number."""
    path = model / "model.safetensors"
    tensors = load_file(path)
    for token in AutoTokenizer.from_pretrained(model)(letters)["input_ids"]:
        tensors["model.embed_tokens.weight"][token] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_rollout_actor_that_is_lost_is_named_and_the_others_go_on(bereft):
    rows = [json.loads(line) for line in (bereft / "metrics.jsonl").open()]
    assert [row["name"] for row in rows if row.get("event") == "lost"] == ["rollout-1"]


def test_a_loss_that_is_no_number_stops_the_run_names_the_batch_and_keeps_the_last_good_checkpoint(stopped):
    assert "train/" in stopped.complaint
    assert "#0" in stopped.complaint
    assert stopped.kept == ["step-000002"]


def test_a_stopped_run_goes_on_as_if_it_had_never_stopped_and_one_that_lost_an_actor_too(stopped, bereft):
    losses = [
        [row["learner/loss"] for row in read_metrics(folder) if "learner/loss" in row]
        for folder in (bereft, stopped.folder)
    ]
    assert len(losses[0]) == 4
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    kept = json.loads((stopped.folder / "checkpoints" / "step-000004" / "progress.json").read_text())
    assert (kept["step"], kept["version"]) == (4, 2)


def test_a_teacher_with_damaged_weights_is_refused_as_itself(ray_cluster, questions, tmp_path):
    student = tiny_model("llama", tmp_path / "student")
    teacher = tiny_model("llama", tmp_path / "teacher")
    poison(teacher, "abcdefghijklmnopqrstuvwxyz")
    config = tiny_run(teacher, student, questions, tmp_path / "run", rollout={"teacher_mix": 0.0})
    with pytest.raises(ModelError, match="not finite") as held:
        train(config)
    # While somebody still holds the error, and with it the frames that began the run.
    deadline = time.monotonic() + 20
    while (left := ray.util.list_named_actors()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left, held

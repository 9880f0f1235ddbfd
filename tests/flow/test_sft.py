"""Fine-tuning through the whole loop: learners alone, and the student of the lowest loss is the best."""

from __future__ import annotations

import json

import pytest
import yaml
from minillm_ray.deploy.api import train
from minillm_ray.deploy.config.presets import load_sft
from minillm_ray.deploy.training.metrics_log import read_metrics
from minillm_ray.tests.tiny_runs import tiny_run

pytestmark = pytest.mark.ray


def test_fine_tuning_needs_learners_alone_and_keeps_the_student_of_the_lowest_loss(
    ray_cluster, tiny_pair, questions, tmp_path
):
    teacher, student = tiny_pair
    run = tiny_run(
        teacher, student, questions, tmp_path / "run", data={"validation": {"path": str(questions)}}
    )
    settings = json.loads(run.model_dump_json(exclude_unset=True))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    steps = ["learner.max_steps=3", "learner.optimizer.lr=0.02", "eval_steps=1"]
    result = train(load_sft(tmp_path / "run.yaml", steps))
    assert set(result.memory) == {"driver", "writer", "learner-0", "learner-1"}
    losses = {row["step"]: row["validation/loss"] for row in read_metrics(tmp_path / "run")
              if "validation/loss" in row}  # fmt: skip
    assert sorted(losses) == [0, 1, 2, 3]
    assert result.best_step == min(losses, key=lambda step: losses[step])
    assert losses[result.best_step] < losses[0]
    assert "fine-tuned" in (tmp_path / "run" / "best" / "README.md").read_text()

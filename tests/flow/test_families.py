"""Each family through the whole loop under ZeRO-3, over two weight updates."""

from __future__ import annotations

import numpy as np
import pytest
from minillm_ray.deploy.api import train
from minillm_ray.deploy.training.metrics_log import read_metrics
from minillm_ray.tests.tiny_models import tiny_model
from minillm_ray.tests.tiny_runs import tiny_run

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow]


@pytest.mark.parametrize(
    ("family", "tied", "padding"),
    [("gpt2", True, 0), ("llama", False, 0), ("qwen2", False, 8)],
    ids=["gpt2-tied", "llama-untied", "qwen2-unequal-heads"],
)
def test_after_two_updates_the_engine_draws_from_the_learners_weights(
    family, tied, padding, ray_cluster, questions, tmp_path
):
    teacher = tiny_model(family, tmp_path / "teacher", seed=1, width=96, tied=tied, padding=padding)
    student = tiny_model(family, tmp_path / "student", seed=2, width=64, layers=1, tied=tied)
    config = tiny_run(
        teacher,
        student,
        questions,
        tmp_path / "run",
        learner={"zero_stage": 3, "num_iterations": 1, "max_steps": 3, "world_size": 2, "batch_size": 8,
                 "micro_batch_size": 2, "optimizer": {"lr": 0.01}},
    )  # fmt: skip
    train(config)
    rows = [row for row in read_metrics(tmp_path / "run") if "learner/engine_gap" in row]
    assert [row["version"] for row in rows] == [0, 1, 2]
    assert max(row["learner/engine_gap"] for row in rows) < 1e-4
    assert np.ptp([row["learner/reverse_kl"] for row in rows]) > 1e-3  # the weights did move

"""A model is trained from text alone through the same loop; the one of the lowest held-out loss is kept."""

from __future__ import annotations

import pytest
from minillm_ray.deploy.models.pretrain import Shape, pretrain
from minillm_ray.deploy.training.metrics_log import read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_model_learns_from_text_alone_and_from_several_files(ray_cluster, tmp_path):
    for name, word in (("one", "red"), ("two", "blue")):
        (tmp_path / f"{name}.txt").write_text(f"the {word} fish saw the {word} moon over the sea. " * 60)
    result = pretrain(
        [tmp_path / "one.txt", tmp_path / "two.txt"],
        tmp_path / "out",
        Shape(layers=1, width=32, positions=64, vocabulary=280),
        steps=8,
        overrides=[
            "learner.batch_size=8", "learner.micro_batch_size=8", "learner.optimizer.lr=0.02",
            "text.block_tokens=16", "text.validation_blocks=8",
            "cluster.learner_cpus=0.1", "cluster.writer_cpus=0.1",
        ],
    )  # fmt: skip
    losses = [row["validation/loss"] for row in read_metrics(tmp_path / "out") if "validation/loss" in row]
    assert len(losses) == 2
    assert losses[1] < 0.9 * losses[0]
    assert result.best_step == 8
    assert set(result.memory) == {"driver", "writer", "learner-0"}
    assert (tmp_path / "out" / "best" / "tokenizer.json").exists()

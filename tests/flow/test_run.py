"""The whole loop on Ray with real engines: one run, looked at from all sides."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from minillm_ray.deploy.api import train
from minillm_ray.deploy.training.driver import Result
from minillm_ray.deploy.training.metrics_log import read_metrics
from minillm_ray.tests.tiny_runs import tiny_run

pytestmark = [pytest.mark.ray, pytest.mark.vllm]


@dataclass(frozen=True)
class Finished:
    result: Result
    folder: Path


@pytest.fixture(scope="module")
def finished(ray_cluster, tiny_pair, questions, tmp_path_factory) -> Finished:
    """A run with validation, held-out prompts and a language-model term, gone through to its end."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    corpus = folder.parent / "corpus.txt"
    corpus.write_text("the red cat saw the blue fish by the moon\n" * 40)
    teacher, student = tiny_pair
    few = {"path": str(questions), "limit": 6}
    config = tiny_run(
        teacher,
        student,
        questions,
        folder,
        data={"validation": few, "test": few},
        text={"path": str(corpus), "block_tokens": 16, "batch_size": 4},
        eval_steps=2,
        validation={"test_num_generations": 2},
    )
    return Finished(train(config), folder)


def steps_of(folder: Path) -> list[dict]:
    return [row for row in read_metrics(folder) if "learner/loss" in row]


def test_a_run_makes_its_steps_and_says_what_each_did(finished):
    rows = steps_of(finished.folder)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert np.isfinite(row["learner/loss"])
        assert row["learner/reverse_kl"] > 0
        assert row["learner/text_loss"] > 0


def test_engine_and_learner_agree_on_log_q_at_the_same_version_after_each_update(finished):
    gaps = [row["learner/engine_gap"] for row in steps_of(finished.folder) if "learner/engine_gap" in row]
    assert len(gaps) == 2
    assert max(gaps) < 1e-4


def test_the_teacher_reads_no_answer_that_mixed_sampling_has_shown_it(finished):
    rows = read_metrics(finished.folder)
    gaps = [row["teacher/states_gap"] for row in rows if "teacher/states_gap" in row]
    assert gaps
    assert max(gaps) < 1e-3
    assert not any("teacher/set_s" in row for row in rows)


def test_rollouts_can_be_read_with_pandas_and_name_their_weights(finished):
    tables = [pd.read_parquet(p) for p in sorted((finished.folder / "rollouts").glob("*.parquet"))]
    assert [len(t) for t in tables] == [8, 8]
    assert [set(t["newest"]) for t in tables] == [{0}, {1}]
    rows = pd.concat(tables).to_dict("records")
    for row in rows:
        mixed = np.log(0.8 * np.exp(row["student_logprobs"]) + 0.2 * np.exp(row["mixed_teacher_logprobs"]))
        np.testing.assert_allclose(row["behaviour_logprobs"], mixed, atol=1e-4)
        np.testing.assert_allclose(row["mixed_teacher_logprobs"], row["teacher_logprobs"], atol=1e-4)


def test_the_saved_student_opens_with_transformers_and_says_how_it_was_made(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    best = finished.folder / "best"
    model = AutoModelForCausalLM.from_pretrained(best)
    assert AutoTokenizer.from_pretrained(best).chat_template
    assert model.generation_config.eos_token_id is not None
    assert "MiniLLM" in (best / "README.md").read_text()


def test_held_out_prompts_are_measured_before_and_after_and_for_the_teacher(finished):
    result = finished.result
    for measured in (result.before, result.after):
        assert measured is not None
        assert len(measured.answers) == 12
        kl = measured.reverse_kl()
        assert kl is not None
        assert kl.low <= kl.mean <= kl.high
    assert result.teacher is not None
    assert result.teacher.reverse_kl() is None
    assert len(result.teacher.examples) == 3


def test_the_memory_of_every_process_is_told(finished):
    held = finished.result.memory
    assert set(held) == {"driver", "writer", "rollout-0", "teacher-0", "learner-0", "learner-1"}
    assert all(size > 50 << 20 for size in held.values())


def test_the_folder_holds_what_a_person_looks_for(finished):
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "tensorboard",
        "plots/quality.png",
        "last/model.safetensors",
    ):
        assert (finished.folder / name).exists(), name


@pytest.mark.slow
def test_a_divergence_is_learned_on_half_sampled_and_half_given_answers_until_its_tokens_are_spent(
    ray_cluster, tiny_pair, questions, tmp_path
):
    teacher, student = tiny_pair
    config = tiny_run(
        teacher,
        student,
        questions,
        tmp_path / "run",
        objective={"kind": "kd", "divergence": "jsd", "sampled_share": 0.5},
        rollout={"teacher_mix": 0.0},
        learner={**tiny_run(teacher, student, questions, tmp_path).learner.model_dump(), "token_budget": 1},
    )
    assert train(config).steps == 1  # of four, since one step's answers have more than one token
    rows = pd.concat([pd.read_parquet(p) for p in sorted((tmp_path / "run" / "rollouts").glob("*.parquet"))])
    assert len(rows) == 8
    assert list(rows["finish"].isna()).count(True) == 4  # what was not sampled did not end in any way
    assert list(rows["teacher_logprobs"].isna()).count(True) == 8  # this loss reads none of them
    assert all(row["learner/divergence"] > 0 for row in steps_of(tmp_path / "run"))

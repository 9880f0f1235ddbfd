"""Fine-tuning is a run with other defaults beneath, which start nobody that nothing asks for."""

from __future__ import annotations

from pathlib import Path

import pytest
from minillm_ray.common.errors import ConfigError
from minillm_ray.deploy.config.loader import load_run, merge_defaults
from minillm_ray.deploy.config.presets import load_sft
from minillm_ray.deploy.runtime.placement import bundles

RUN = """
student: {path: small}
teacher: {path: large, revision: main}
data: {train: {path: train.jsonl}, validation: {path: validation.jsonl}}
learner: {max_steps: 7, optimizer: {lr: 1.0e-3}}
"""


@pytest.fixture
def run_file(tmp_path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    return path


def roles(config) -> set[str]:
    return {bundle.role for bundle in bundles(config)}


def test_the_runs_own_settings_win_over_the_defaults_of_fine_tuning(run_file):
    config = load_sft(run_file)
    assert (config.objective.kind, config.validation.metric) == ("sft", "loss")
    assert (config.learner.max_steps, config.learner.optimizer.lr) == (7, 1e-3)
    assert config.learner.optimizer.schedule == "cosine"
    assert load_sft(run_file, ["validation.metric=auto"]).validation.metric == "auto"


def test_the_teacher_is_fine_tuned_as_the_only_model(run_file):
    config = load_sft(run_file, [], "teacher")
    assert (config.student.path, config.student.revision, config.teacher) == ("large", "main", None)


def test_a_named_teacher_stays_at_home_unless_the_reverse_kl_is_asked_for(run_file):
    assert roles(load_sft(run_file)) == {"learner"}
    assert roles(load_sft(run_file, ["validation.metric=auto"])) == {"learner", "rollout", "teacher"}
    assert roles(load_sft(run_file, ["data.test.path=h.jsonl"])) == {"learner", "rollout", "teacher"}
    assert roles(load_run(run_file)) == {"learner", "rollout", "teacher"}


@pytest.mark.parametrize(
    ("override", "model", "says"),
    [
        ("objective.kind=minillm", "student", "objective.kind = minillm is not fine-tuning"),
        ("teacher=null", "teacher", "teacher is missing, and it is the model to fine-tune"),
        ("objective=3", "student", "objective = 3 is not a section"),
    ],
)
def test_what_is_no_fine_tuning_is_one_fault_with_its_way_out(run_file, override, model, says):
    with pytest.raises(ConfigError) as found:
        load_sft(run_file, [override], model)
    assert len(found.value.faults) == 1
    assert str(found.value.faults[0]).startswith(says)


def test_settings_lie_beneath_others_section_by_section_and_lists_whole():
    low = {"a": {"b": 1, "c": [1, 2]}, "d": {"e": 1}, "f": 1}
    high = {"a": {"c": [3]}, "d": None}
    assert merge_defaults(low, high) == {"a": {"b": 1, "c": [3]}, "d": None, "f": 1}

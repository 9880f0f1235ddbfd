"""A run file either gives one configuration, or says everything that is wrong with it at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from minillm_ray.common.config.run import RunConfig
from minillm_ray.common.errors import ConfigError
from minillm_ray.deploy.config.loader import as_yaml, load_run, save_resolved
from omegaconf import OmegaConf

SMALLEST = "student: {path: a/student}\nteacher: {path: a/teacher}\ndata: {train: {path: train.jsonl}}\n"


def write(folder: Path, text: str = SMALLEST) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def faults(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as found:
        load_run(path, list(overrides))
    assert str(found.value).startswith(f"run file {path} cannot be used:\n  ")
    return list(map(str, found.value.faults))


def test_the_smallest_run_file_gives_the_defaults(tmp_path):
    config = load_run(write(tmp_path))
    assert config.rollout.teacher_mix == 0.2
    assert config.data.train is not None
    assert (config.student.path, config.data.train.path) == ("a/student", "train.jsonl")


@pytest.mark.parametrize("cpus", ["0.5", "1.5", "0"])
def test_a_part_of_a_cpu_is_not_declared_as_less_but_refused(tmp_path, cpus):
    (fault,) = faults(write(tmp_path), f"cluster.cpus={cpus}")
    assert fault == f"invalid value {cpus} for cluster.cpus; expected a whole number at least 1 or null"
    assert load_run(write(tmp_path), ["cluster.cpus=2.0"]).cluster.cpus == 2


def test_overrides_reach_nested_null_and_list_values(tmp_path):
    config = load_run(
        write(tmp_path, SMALLEST + "text: {path: c.txt}\nlearner: {max_steps: 7}\n"),
        [
            "learner.optimizer.betas=[0.8, 0.9]",
            "learner.optimizer.lr=1e-4",
            "data.validation.path=v.jsonl",
            "objective.reward_clip=10",
            "text=null",
            "data.train.input=null",
            "data.system_prompt='Be: kind'",
        ],
    )
    assert config.learner.optimizer.betas == (0.8, 0.9)
    assert config.learner.optimizer.lr == 1e-4
    assert config.learner.max_steps == 7
    assert config.data.validation is not None
    assert config.data.validation.path == "v.jsonl"
    assert config.objective.reward_clip == 10
    assert config.text is None
    assert config.data.train is not None
    assert config.data.train.input is None
    assert config.data.system_prompt == "Be: kind"


def test_a_preset_can_be_chosen_by_an_override_and_a_written_setting_wins(tmp_path):
    config = load_run(write(tmp_path), ["objective.preset=reference", "objective.gamma=0.5"])
    assert (config.objective.gamma, config.objective.whiten) == (0.5, True)


def test_all_faults_are_told_at_once_with_key_value_and_way_out(tmp_path):
    text = (
        SMALLEST
        + "rollout: {teacher_mix: 1.5, rollout_batch_sise: 100, dtype: float64}\nlearner: {world_size: 3}\n"
    )
    found = faults(write(tmp_path, text), "learner.optimizer.betas=[0.9, 2]", "teacher_mix=0.3", "nonsense")
    expected = [
        "nonsense is not a setting; write key.sub=value, such as learner.max_steps=100",
        "invalid value 1.5 for rollout.teacher_mix; expected a number from 0 to 1",
        "rollout.rollout_batch_sise is unknown; did you mean rollout.rollout_batch_size?",
        "invalid value float64 for rollout.dtype; expected one of float32, bfloat16, float16",
        "invalid value 2 for learner.optimizer.betas.1; expected a number from 0 to 1",
        "teacher_mix is unknown; did you mean rollout.teacher_mix?",
        "learner.batch_size = 64 does not divide over learner.world_size = 3; try 66",
    ]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "rollout.teacher_mix=-0.1",
            "invalid value -0.1 for rollout.teacher_mix; expected a number from 0 to 1",
        ),
        ("rollout.top_p=0", "invalid value 0 for rollout.top_p; expected a number above 0 and at most 1"),
        ("learner.max_steps=0", "invalid value 0 for learner.max_steps; expected a whole number at least 1"),
        (
            "learner.max_steps=many",
            "invalid value many for learner.max_steps; expected a whole number at least 1",
        ),
        (
            "learner.max_steps=null",
            "invalid value null for learner.max_steps; expected a whole number at least 1",
        ),
        (
            "objective.reward_clip=0",
            "invalid value 0 for objective.reward_clip; expected a number above 0 or null",
        ),
        ("student.path=null", "invalid value null for student.path; expected text"),
        (
            "rollout.enforce_eager=perhaps",
            "invalid value perhaps for rollout.enforce_eager; expected true or false",
        ),
        (
            "rollout.rollout_batch_size=100",
            "rollout.rollout_batch_size = 100 does not divide into batches",
        ),
        (
            "learner.world_size=3",
            "learner.batch_size = 64 does not divide over learner.world_size = 3; try 66",
        ),
        (
            "learner.micro_batch_size=128",
            "learner.micro_batch_size = 128 on 1 ranks is more than learner.batch_size = 64",
        ),
        ("learner.optimizer.min_lr=1e-7", "learner.optimizer.min_lr = 1e-07 is for a cosine schedule, and"),
        ("learner.dropout=true", "learner.dropout = true cannot be combined with sampled answers"),
        ("objective.preset=opd", "objective.preset = opd counts answers as the student's own, and rollout"),
        (
            "objective.kind=kd objective.sampled_share=0.3",
            "objective.sampled_share = 0.3 of rollout.rollout_batch_size = 256 is not a whole",
        ),
        ("seed=-1", "invalid value -1 for seed; expected a whole number at least 0"),
        (
            "rollout.num_generations=7",
            "rollout.rollout_batch_size = 256 is not a multiple of rollout.num_generations = 7; try 259",
        ),
        (
            "validation.metric=bleu",
            "invalid value bleu for validation.metric; expected one of auto, rouge_l",
        ),
        (
            "learner.offload=cpu",
            "learner.offload = cpu needs a partitioned optimiser, and learner.zero_stage = 0; set",
        ),
        (
            "learner.optimizer.schedule=cosine learner.optimizer.min_lr=1",
            "learner.optimizer.min_lr = 1 is above learner.optimizer.lr = 5e-06",
        ),
        ("teacher=null", "teacher is missing, and objective.kind = minillm needs it; set teacher.path"),
        ("data.template=plain data.train.messages=chat", "data.train.messages = chat needs a chat template"),
        (
            "data.template=alpaca data.system_prompt=hi",
            "data.system_prompt = hi has no place in data.template = alpaca; set data.template=chat",
        ),
        (
            "objective.importance_weight=per_decision objective.clip=none",
            "objective.length_norm = true cannot be combined",
        ),
    ],
)
def test_an_impossible_setting_is_one_fault_with_its_way_out(tmp_path, override, says):
    (found,) = faults(write(tmp_path), *override.split())
    assert found.startswith(says)


def test_a_section_given_as_a_value_names_its_settings(tmp_path):
    (found,) = faults(write(tmp_path), "validation=100")
    assert found.startswith(
        "validation = 100 is not a section of settings; write one below it: metric, num_generations"
    )


def test_missing_settings_are_named(tmp_path):
    assert faults(write(tmp_path, "teacher: {path: t}\ndata: {}\n")) == [
        "student is missing; set student=...",
        "data.train is missing; set data.train.path, or learn from plain text only: objective.kind=sft and"
        " text.path",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1,\n", "it is not readable YAML"),
        ("- a\n- b\n", "it is not a mapping of settings"),
        (SMALLEST + "seed: ${nothing.here}\n", "Interpolation key 'nothing.here' not found"),
        ("", "student is missing"),
    ],
)
def test_a_file_that_is_no_run_file_is_refused(tmp_path, text, says):
    assert faults(write(tmp_path, text))[0].startswith(says)


def test_a_missing_file_names_its_neighbour(tmp_path):
    write(tmp_path)
    (found,) = faults(tmp_path / "rum.yaml")
    assert found == f"there is no such file; did you mean {tmp_path / 'run.yaml'}?"


def test_paths_start_at_the_run_file_and_those_of_overrides_where_one_stands(tmp_path, monkeypatch):
    beside, here = tmp_path / "beside", tmp_path / "here"
    for folder in (beside / "a" / "student", here / "mine", here / "a" / "student", here / "a" / "teacher"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    path = write(beside)
    config = load_run(path)
    assert config.student.path == str(beside / "a" / "student")
    assert config.teacher is not None
    assert config.teacher.path == str(here / "a" / "teacher")
    assert config.data.train is not None
    assert config.data.train.path == "train.jsonl"
    assert config.output_dir == here / "runs" / "minillm"
    assert load_run(path, ["student.path=mine"]).student.path == str(here / "mine")


def test_a_saved_configuration_gives_the_same_run(tmp_path):
    config = load_run(
        write(tmp_path),
        [
            "objective.preset=reference",
            "data.train.input=null",
            f"output_dir={tmp_path / 'out'}",
            "text.path=a.txt",
        ],
    )
    saved = save_resolved(config, tmp_path / "out")
    assert saved == tmp_path / "out" / "config.yaml"
    assert load_run(saved) == config
    assert isinstance(config, RunConfig)


@given(st.text(alphabet="\\\\${}ab", max_size=12))
@settings(max_examples=300, deadline=None)
def test_a_plain_dollar_brace_is_kept_as_it_is(text):
    tree = yaml.safe_load(as_yaml({"data": {"system_prompt": [text]}}))
    assert OmegaConf.to_container(OmegaConf.create(tree), resolve=True) == {"data": {"system_prompt": [text]}}


def test_a_fault_between_settings_is_not_told_of_one_that_is_wrong_by_itself(tmp_path):
    found = faults(write(tmp_path), "learner.batch_size=0", "learner.world_size=3", "rollout.top_p=2")
    assert found == [
        "invalid value 2 for rollout.top_p; expected a number above 0 and at most 1",
        "invalid value 0 for learner.batch_size; expected a whole number at least 1",
    ]


def test_a_fault_carries_its_key_its_value_and_the_other_settings_that_take_part(tmp_path):
    with pytest.raises(ConfigError) as found:
        load_run(write(tmp_path), ["learner.world_size=3"])
    (fault,) = found.value.faults
    assert (fault.key, fault.value, fault.also) == ("learner.batch_size", 64, ("learner.world_size",))
    assert fault.fix == "try 66"


@pytest.mark.parametrize(
    ("overrides", "iterations"),
    [
        ([], 4),
        (["objective.preset=reference"], 4),
        (["learner.num_iterations=2"], 2),
        (["objective.preset=opd", "rollout.teacher_mix=0"], 1),
        (["objective.preset=opd", "rollout.teacher_mix=0", "learner.num_iterations=3"], 3),
        (["objective.kind=kd", "objective.sampled_share=0.5"], 1),
        (["objective.kind=kd", "objective.sampled_share=1", "learner.num_iterations=2"], 2),
        (["objective.kind=kd", "learner.num_iterations=2"], 1),
        (["objective.kind=sft"], 1),
    ],
)
def test_on_policy_methods_pass_once_over_a_set_unless_told_otherwise(tmp_path, overrides, iterations):
    config = load_run(write(tmp_path), overrides)
    assert config.num_iterations == iterations
    assert load_run(save_resolved(config, tmp_path / "out")).learner.num_iterations == iterations


def test_opd_is_not_clipped_and_samples_from_the_student_alone(tmp_path):
    config = load_run(write(tmp_path), ["objective.preset=opd", "rollout.teacher_mix=0"])
    assert config.objective.clip == "none"
    assert config.preset_overrides() == {}


def test_settings_that_override_a_preset_are_known_with_both_values(tmp_path):
    opd = ["objective.preset=opd", "rollout.teacher_mix=0"]
    config = load_run(write(tmp_path), [*opd, "objective.clip=upper", "learner.num_iterations=2"])
    expected = {"objective.clip": ("none", "upper"), "learner.num_iterations": (1, 2)}
    assert config.preset_overrides() == expected
    assert load_run(save_resolved(config, tmp_path / "out")).preset_overrides() == expected

"""A chain says all that is wrong before it begins, then runs what is not finished, phase after phase."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from minillm_ray.common.config.eval import EvalConfig
from minillm_ray.common.config.generate import GenerateConfig
from minillm_ray.common.config.run import RunConfig
from minillm_ray.common.errors import ConfigError
from minillm_ray.deploy.pipeline import chain as chain_module
from minillm_ray.deploy.pipeline import phases
from minillm_ray.deploy.pipeline import runner as module
from minillm_ray.deploy.pipeline.chain import Chain, is_chain, load_chain
from minillm_ray.deploy.pipeline.resume import resume_any
from minillm_ray.deploy.pipeline.runner import check_chain, check_phases, run_chain
from minillm_ray.tests.tiny_models import tiny_model
from minillm_ray.tests.tiny_runs import write_questions
from rich.console import Console

TREE = {
    "output_dir": "whole",
    "base": {
        "teacher": {"path": "teacher"},
        "data": {
            "train": {"path": "questions.jsonl", "split": "train[:20]", "input": None},
            "template": "chat",
            "max_prompt_tokens": 32,
        },
        "rollout": {"rollout_batch_size": 8, "max_new_tokens": 16, "kv_cache_gib": 0.02, "max_num_seqs": 8},
        "learner": {"batch_size": 8, "micro_batch_size": 2, "max_steps": 4},
    },
    "phases": {
        "sft": {"do": "sft", "student": {"path": "student"}, "learner": {"max_steps": 3}},
        "answers": {"do": "generate"},
        "seqkd": {
            "do": "sft",
            "student": {"path": "${output_dir}/sft/best"},
            "data": {"train": {"path": "${output_dir}/answers/answers.jsonl"}},
        },
        "minillm": {"do": "train", "student": {"path": "${output_dir}/seqkd/best"}},
        "eval": {
            "do": "eval",
            "models": ["student", "${output_dir}/minillm/best"],
            "data": ["questions.jsonl"],
            "num_seeds": 2,
        },
    },
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("chain")
    tiny_model("llama", folder / "teacher", width=96)
    tiny_model("llama", folder / "student")
    write_questions(folder / "questions.jsonl")
    return folder


@pytest.fixture
def here(files, tmp_path, monkeypatch) -> Path:
    """A file chain.yaml beside which models and data lie, with a folder of its own to run in."""
    for name in ("teacher", "student", "questions.jsonl"):
        (tmp_path / name).symlink_to(files / name)
    (tmp_path / "chain.yaml").write_text(yaml.safe_dump(TREE, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(here: Path, *overrides: str) -> Chain:
    return load_chain(here / "chain.yaml", overrides)


def faults(here: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as found:
        check_chain(load(here, *overrides))
    return list(map(str, found.value.faults))


def test_a_phase_has_what_lies_beneath_it_and_its_own_above_in_a_folder_of_its_own(here):
    sft, answers, seqkd, minillm, evaluation = load(here, "base.seed=5").phases
    assert isinstance(sft.config, RunConfig)
    assert (sft.config.objective.kind, sft.config.learner.max_steps, sft.config.learner.batch_size) == (
        "sft",
        3,
        8,
    )
    assert sft.config.output_dir == here / "whole" / "sft"
    assert {phase.settings()["seed"] for phase in (sft, seqkd, minillm)} == {5}
    assert isinstance(answers.config, GenerateConfig)
    assert answers.config.model.path == str((here / "teacher").resolve())
    assert isinstance(minillm.config, RunConfig)
    assert minillm.config.student.path == str(here / "whole" / "seqkd" / "best")
    assert isinstance(evaluation.config, EvalConfig)
    assert evaluation.config.model_names() == ["student", "minillm/best"]
    assert (evaluation.config.template, evaluation.config.engine.max_new_tokens) == ("chat", 16)


def test_a_data_set_that_a_phase_names_has_columns_of_its_own(here):
    config = load(here).phases[2].config
    answers = str(here / "whole" / "answers" / "answers.jsonl")
    assert isinstance(config, RunConfig)
    assert config.data.train is not None
    assert config.data.train.model_dump(exclude_unset=True) == {"path": answers}


def test_everything_that_is_wrong_in_any_phase_is_told_at_once_and_once(here):
    found = faults(
        here, "base.learner.max_step=2", "phases.sft.model=critic", "phases.minillm.rollout.teacher_mix=2",
        "phases.eval.num_seeds=0", "phases.minillm.student.path=${output_dir}/sfft/best",
    )  # fmt: skip
    text = "\n".join(found)
    assert text.count("learner.max_step is unknown; did you mean learner.max_steps?") == 1
    assert "phases.sft, phases.answers, phases.seqkd, phases.minillm: learner.max_step " in text
    assert "phases.sft: invalid value critic for model; expected one of student, teacher" in found
    assert "phases.minillm: invalid value 2 for rollout.teacher_mix" in text
    assert "phases.eval: invalid value 0 for num_seeds" in text


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("phases.seqkd.student.path=${output_dir}/sfft/best", "phases.seqkd: student.path = "),
        ("phases.sft.student.path=${output_dir}/minillm/best", "no phase comes before it"),
        ("phases.eval.models=[student, '${output_dir}/answers/best']", "phases.eval: models[1].path = "),
    ],
)
def test_what_no_earlier_phase_makes_is_a_fault(here, override, says):
    assert says in "".join(faults(here, override))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("phases.sft=null", "phases.sft.do is missing; expected one of train, sft, generate, eval"),
        (
            "phases.sft.do=sing",
            "invalid value sing for phases.sft.do; expected one of train, sft, generate",
        ),
        ("phases.sft.output_dir=x", "phases.sft.output_dir = x cannot be set"),
        ("phases=null", "phases is empty"),
        ("learner.max_steps=3", "learner is not part of a chain; write settings below base"),
        ("base=3", "base = 3 is not a section"),
        ("output_dir=null", "output_dir is missing"),
        ("out=x", "out is not part of a chain; did you mean output_dir?"),
    ],
)
def test_a_tree_that_is_no_chain_is_refused(here, override, says):
    assert faults(here, override)[0].startswith(says)


def test_models_and_data_of_all_phases_are_looked_at_before_the_first_begins(here):
    plans = check_chain(load(here))
    assert list(plans) == ["sft", "seqkd", "minillm"]
    assert plans["minillm"].student.path == str((here / "student").resolve())
    assert plans["seqkd"].data.records == {}
    found = faults(here, "base.teacher.path=./techer", "phases.minillm.data.max_prompt_tokens=250")
    assert sum("techer is a folder that does not exist" in line for line in found) == 1
    assert found[0].startswith(
        "phases.sft, phases.answers, phases.seqkd, phases.minillm, phases.eval: teacher.path = "
    )
    assert any(
        line.startswith("phases.minillm: data.max_prompt_tokens = 250 leaves no room") for line in found
    )


@pytest.fixture
def ran(monkeypatch) -> list[str]:
    """Phases do nothing but make their folders, and are listed as they run; `stop` stops the chain once."""
    names: list[str] = []

    def run(config, console, plan):
        folder = config.output_dir
        names.append(folder.name)
        for made in ("best", "answers.jsonl"):
            (folder / made).mkdir(parents=True, exist_ok=True)
        if folder.name in stop:
            stop.clear()
            raise KeyboardInterrupt
        return folder

    stop = {"seqkd"}
    kinds = {n: replace(k, run=run, report=str, check=lambda *_: None) for n, k in phases.KINDS.items()}
    monkeypatch.setattr(chain_module, "KINDS", kinds)
    monkeypatch.setattr(module, "cluster", lambda settings: nullcontext(""))
    return names


def test_a_stopped_chain_goes_on_with_the_phase_that_was_stopped_and_skips_finished_ones(here, ran):
    with pytest.raises(KeyboardInterrupt):
        run_chain(load(here), Console())
    assert ran == ["sft", "answers", "seqkd"]
    done = run_chain(load(here, "base.cluster.cpus=3"), Console())
    assert ran[3:] == ["seqkd", "minillm", "eval"]
    assert [each.name for each in done if each.result is None] == ["sft", "answers"]
    run_chain(load(here), Console())
    assert len(ran) == 6


def test_a_phase_that_was_begun_keeps_its_settings(here, ran):
    with pytest.raises(KeyboardInterrupt):
        run_chain(load(here), Console())
    with pytest.raises(ConfigError) as found:
        run_chain(
            load(here, "phases.seqkd.learner.max_steps=9", "phases.minillm.learner.max_steps=9"), Console()
        )
    (fault,) = found.value.faults
    assert str(fault).startswith(
        "phases.seqkd: learner.max_steps = 9, and the phase was begun with 4; set it back, delete"
    )
    shutil.rmtree(here / "whole" / "seqkd")
    run_chain(load(here, "phases.seqkd.learner.max_steps=9"), Console())
    assert ran[3:] == ["seqkd", "minillm", "eval"]


def test_the_folder_of_a_chain_is_all_that_is_needed_to_go_on(here, ran, tmp_path_factory, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        run_chain(load(here, "phases.minillm.learner.max_steps=9"), Console())
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert is_chain(here / "whole" / "config.yaml")
    assert "minillm" in str(resume_any(here / "whole", Console()))
    assert ran[3:] == ["seqkd", "minillm", "eval"]
    kept = json.loads((here / "whole" / "phases.json").read_text())
    assert kept["minillm"]["settings"]["learner"]["max_steps"] == 9


def test_a_plan_made_before_the_chain_is_used_unless_something_was_pending(here, monkeypatch):
    plans = {}

    def run(config, console, plan):
        plans[config.output_dir.name] = plan
        config.output_dir.mkdir(parents=True)

    kinds = {name: replace(kind, run=run, report=str) for name, kind in phases.KINDS.items()}
    monkeypatch.setattr(chain_module, "KINDS", kinds)
    monkeypatch.setattr(module, "cluster", lambda settings: nullcontext(""))
    run_chain(load(here, "phases.eval.models=[student]"), Console())
    assert {name: type(plan).__name__ for name, plan in plans.items()} == {
        "sft": "Plan", "answers": "GeneratePlan", "seqkd": "NoneType", "minillm": "NoneType", "eval": "list"
    }  # fmt: skip
    assert len(plans["sft"].data.answers) == 20


def test_a_plan_is_not_used_where_an_unfinished_phase_will_make_its_model_anew(here):
    """A phase that was stopped may have left a `best` already."""
    shutil.copytree(here / "student", here / "whole" / "sft" / "best")
    chain = load(
        here, "phases.seqkd.data.train.path=questions.jsonl", "phases.seqkd.data.train.output=output"
    )
    checked = check_phases(chain)
    assert {name: one.whole for name, one in checked.items() if name in ("sft", "answers", "seqkd")} == {
        "sft": True, "answers": True, "seqkd": False
    }  # fmt: skip


def test_a_file_that_an_earlier_phase_makes_is_not_taken_for_a_model(here):
    found = faults(here, "phases.minillm.student.path=${output_dir}/answers/answers.jsonl")
    assert found[0].startswith("phases.minillm: student.path = ")
    assert "is made by an earlier phase, but is not a model" in found[0]


def test_what_is_no_chain_is_not_taken_for_one(here):
    (here / "run.yaml").write_text("student: {path: a}\n")
    assert [is_chain(here / name) for name in ("chain.yaml", "run.yaml", "none.yaml")] == [True, False, False]

"""The run files of the baselines can be read, say where they come from, and set what was published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from minillm_ray.common.config.eval import EvalConfig
from minillm_ray.common.config.run import RunConfig
from minillm_ray.deploy import recipes
from minillm_ray.deploy.config.loader import load_run
from minillm_ray.deploy.pipeline.chain import is_chain, load_chain

FOLDER = Path(recipes.__file__).parent / "baselines"
FILES = {file.stem: file for file in sorted(FOLDER.glob("*.yaml"))}
METHODS = {"sft", "kd", "seqkd", "seqkd_reference", "gkd", "distillm", "akl", "atkd", "opd", "minillm"}


def run_of(name: str) -> RunConfig:
    """The run, or the last phase of the chain."""
    file = FILES[name]
    if not is_chain(file):
        return load_run(file)
    last = load_chain(file).phases[-1].config
    assert isinstance(last, RunConfig)
    return last


def test_every_method_of_the_comparison_has_its_file():
    assert set(FILES) == {*METHODS, "whole"}


@pytest.mark.parametrize("name", FILES)
def test_a_baseline_is_read_without_a_fault_and_names_its_source(name):
    file = FILES[name]
    out = load_chain(file).output_dir if is_chain(file) else load_run(file).output_dir
    assert out.parts[-2:] == ("baselines", name.replace("_", "-"))
    first = [line for line in file.read_text().splitlines() if line.startswith("# ")]
    assert len(first) >= 2
    assert any("arXiv" in line or "Thinking" in line for line in first)


PUBLISHED: dict[str, dict[str, Any]] = {
    "sft": {"objective.kind": "sft", "learner.optimizer.lr": 5e-4, "learner.batch_size": 32},
    "kd": {
        "objective.divergence": "forward_kl", "objective.lm_share": 0.5, "rollout.rollout_batch_size": 256,
    },
    "seqkd": {"objective.kind": "sft"},
    "seqkd_reference": {"objective.kind": "kd", "objective.lm_share": 0.5},
    "gkd": {"objective.jsd_beta": 0.5, "objective.sampled_share": 0.5, "rollout.teacher_mix": 0.0},
    "distillm": {"objective.divergence": "skew_reverse_kl", "objective.skew": 0.1, "objective.lm_coef": 1},
    "akl": {"objective.divergence": "akl", "objective.akl_mass": 0.5},
    "atkd": {"objective.divergence": "atkd", "objective.atkd_easy_weight": 0.2, "learner.max_steps": 1170},
    "opd": {"objective.gamma": 0.0, "objective.single_step": False, "rollout.teacher_mix": 0.0},
    "minillm": {
        "learner.optimizer.lr": 5e-6, "learner.batch_size": 64, "learner.num_iterations": 4,
        "rollout.teacher_mix": 0.2, "objective.epsilon": 0.2, "learner.max_steps": 5000,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_baseline_sets_what_was_published(name):
    tree: Any = run_of(name).model_dump()
    for key, expected in PUBLISHED[name].items():
        value = tree
        for part in key.split("."):
            value = value[part]
        assert value == expected, key


def test_all_baselines_learn_from_the_same_records_and_none_from_the_test_set():
    whole = load_chain(FILES["whole"]).phases
    runs = [run_of(name) for name in METHODS if name not in ("seqkd", "seqkd_reference")]
    phases = [phase.config for phase in whole[:-1]]
    phases += [load_chain(FILES[name]).phases[0].config for name in ("seqkd", "seqkd_reference")]
    learning = [*runs, *(config for config in phases if not isinstance(config, EvalConfig))]
    assert len(learning) == len(runs) + len(whole) - 1 + 2
    assert {run.data.train and run.data.train.split for run in learning} == {"train[1500:]"}
    runs += [config for config in phases if isinstance(config, RunConfig)]
    assert {run.data.validation.split for run in runs if run.data.validation} == {"train[:1000]"}
    assert isinstance(whole[-1].config, EvalConfig)
    assert whole[-1].config.data[0].split == "train[1000:1500]"


def test_the_whole_chain_distils_as_the_run_file_of_minillm_does():
    whole = {phase.name: phase.config for phase in load_chain(FILES["whole"]).phases}["minillm"]
    alone = run_of("minillm")
    for part in ("objective", "text", "learner"):
        assert getattr(whole, part) == getattr(alone, part), part


def test_the_two_kinds_of_seqkd_learn_from_answers_drawn_in_one_way():
    drawn = [load_chain(FILES[name]).phases[0].settings() for name in ("seqkd", "seqkd_reference")]
    assert drawn[0] == drawn[1]
    assert (drawn[0]["rollout"]["temperature"], drawn[0]["rollout"]["num_generations"]) == (1.0, 1)

"""What cannot work is said before anything starts, all of it at once; what can is planned."""

from __future__ import annotations

import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from minillm_ray.common.config.run import ClusterConfig, RunConfig
from minillm_ray.common.errors import ConfigError, DataError, ModelError
from minillm_ray.deploy.preflight import memory, rules
from minillm_ray.deploy.preflight.check import Plan, check_run
from minillm_ray.deploy.preflight.plan_table import render
from minillm_ray.tests.tiny_models import tiny_model
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

MIB = 1 << 20


def on_cores(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process were bound to so many cores, whatever the machine has."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(count)))


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    """A machine that no cluster runs on, whatever other tests have started."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    on_cores(2, monkeypatch)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    found = {
        "teacher": tiny_model("qwen2", root / "teacher", width=128, layers=3, padding=16, tied=False),
        "student": tiny_model("qwen2", root / "student", padding=8),
        "other": tiny_model("llama", root / "other", vocabulary=140),
    }
    vocabulary = found["other"] / "tokenizer.json"
    swapped = json.loads(vocabulary.read_text())
    words = swapped["model"]["vocab"]
    words["x"], words["y"] = words["y"], words["x"]
    vocabulary.write_text(json.dumps(swapped))
    return {name: str(path) for name, path in found.items()}


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    rows = [{"instruction": f"say {n}", "output": str(n)} for n in range(300)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def settings(models: dict[str, str], questions: str, **changes: Any) -> RunConfig:
    tree: dict[str, Any] = {
        "student": {"path": models["student"]},
        "teacher": {"path": models["teacher"]},
        "data": {"train": {"path": questions}, "template": "plain", "max_prompt_tokens": 32},
        "rollout": {"max_new_tokens": 32, "kv_cache_gib": 0.05},
        "learner": {"world_size": 2},
    }
    for section, values in changes.items():
        tree[section] = {**tree.get(section, {}), **values} if isinstance(values, dict) else values
    return RunConfig.model_validate(tree)


def with_ends(model: str, folder: Path, ends: Any) -> str:
    """A copy of the model whose settings name other tokens that end an answer."""
    copy = Path(shutil.copytree(model, folder))
    for name in ("generation_config.json", "config.json"):
        kept = json.loads((copy / name).read_text())
        (copy / name).write_text(json.dumps(kept | {"eos_token_id": ends}))
    return str(copy)


def pretend_weights(folder: Path) -> None:
    """Weights as the config.json of a folder asks for: a header, and a hole in the file behind it."""
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in network.named_parameters():
        begin, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def test_a_student_whose_answers_cannot_end_is_refused(models, questions, tmp_path):
    endless = with_ends(models["student"], tmp_path / "none", None)
    words = AutoTokenizer.from_pretrained(endless)
    words.eos_token = None
    words.save_pretrained(endless)
    with pytest.raises(ConfigError, match=r"every answer would run to rollout\.max_new_tokens"):
        check_run(settings(models, questions, student={"path": endless}))


def test_the_end_of_given_answers_ends_sampled_ones_too_whatever_the_generation_config_says(
    models, questions, tmp_path
):
    other = with_ends(models["student"], tmp_path / "other", [77])
    assert check_run(settings(models, questions, student={"path": other})).data.answer_format.end_ids == (1,)


def test_a_run_that_can_work_is_planned(models, questions):
    plan = check_run(settings(models, questions))
    assert (plan.vocabulary, plan.max_tokens) == (128, 64)
    assert plan.data.records == {"train": 300}
    assert [(p.role, p.count, p.cpus) for p in plan.processes] == [
        ("learner", 2, 0.4),
        ("rollout", 1, 0.5),
        ("teacher", 1, 0.5),
        ("writer", 1, 0.2),
    ]


def parts(plan: Plan) -> dict[str, dict[str, int]]:
    return {p.role: dict(p.memory.parts) for p in plan.processes}


def test_the_teacher_is_counted_in_every_process_that_holds_it(models, questions):
    plan = check_run(settings(models, questions))
    assert plan.teacher is not None
    weights = plan.teacher.parameters * 4
    held = parts(plan)
    assert plan.teacher.parameters == AutoModelForCausalLM.from_pretrained(models["teacher"]).num_parameters()
    assert held["teacher"]["teacher"] == held["rollout"]["teacher"] == weights
    assert held["learner"]["teacher"] == plan.store.parts["teacher"] == 128 * plan.teacher.hidden * 4
    alone = check_run(settings(models, questions, rollout={"teacher_mix": 0, "max_new_tokens": 32}))
    assert parts(alone)["rollout"]["teacher"] == 0
    assert parts(alone)["teacher"]["teacher"] == weights


def test_zero_shares_out_the_optimiser_then_the_gradients_then_the_weights(models, questions):
    held = [
        parts(check_run(settings(models, questions, learner={"world_size": 2, "zero_stage": n})))["learner"]
        for n in range(4)
    ]
    count = check_run(settings(models, questions)).student.parameters
    assert (held[0]["student"], held[0]["gradients"], held[0]["optimiser"]) == (
        4 * count,
        4 * count,
        8 * count,
    )
    assert held[1]["optimiser"] == pytest.approx((8 + 4) * count / 2, abs=12)
    assert held[1]["gradients"] == 4 * count
    assert held[2]["gradients"] == pytest.approx(4 * count / 2, abs=4)
    assert held[3]["student"] < held[2]["student"]


def test_a_bucket_is_held_only_where_weights_are_gathered_or_converted(models, questions):
    held = [
        parts(check_run(settings(models, questions, learner=learner, rollout=rollout)))["learner"]["buckets"]
        for learner, rollout in (
            ({}, {"max_new_tokens": 32}),
            ({"world_size": 2, "zero_stage": 3}, {"max_new_tokens": 32}),
            ({}, {"max_new_tokens": 32, "dtype": "bfloat16"}),
        )
    ]
    count = check_run(settings(models, questions)).student.parameters
    assert held == [0, 4 * count, 2 * count]  # all of it fits into one bucket


def test_the_cache_holds_the_keys_and_values_of_both_networks(models, questions):
    plan = check_run(settings(models, questions))
    config = settings(models, questions, rollout={"kv_cache_gib": 1.0, "max_new_tokens": 32})
    held = memory.in_engine(config, plan.student, plan.teacher)
    assert held == [plan.student, plan.teacher]
    each = [2 * m.layers * m.kv_heads * m.head_dim * 4 for m in held]
    tokens = memory.cache_tokens(config.rollout, held)
    assert tokens % 32 == 0
    assert tokens == pytest.approx(2**30 / sum(each), abs=32)


def test_gradient_checkpointing_and_smaller_batches_need_less(models, questions):
    def activations(**learner: Any) -> int:
        return parts(check_run(settings(models, questions, learner={"world_size": 2, **learner})))["learner"][
            "activations"
        ]

    plain = activations(micro_batch_size=8)
    assert activations(micro_batch_size=8, keep_logprobs_mib=0) < plain
    assert activations(micro_batch_size=2) < plain
    assert activations(micro_batch_size=8, gradient_checkpointing=True) < plain


def test_the_plan_is_shown_with_every_process_and_note(models, questions):
    plan = check_run(
        settings(
            models, questions, rollout={"rollout_batch_size": 512, "max_new_tokens": 32, "kv_cache_gib": 0.05}
        )
    )
    console = Console(file=io.StringIO(), width=80, record=True)
    console.print(render(plan))
    shown = console.export_text()
    for words in (
        "2 x learner",
        "1 x rollout",
        "1 x teacher",
        "1 x writer",
        "object store",
        "KV cache",
        "128",
    ):
        assert words in shown
    assert "a set takes 512 records, data.train has 300" in " ".join(shown.split())


def check_fails(config: RunConfig, kind: type[Exception], says: str) -> Exception:
    with pytest.raises(kind, match=says) as found:
        check_run(config)
    return found.value


def test_different_tokenizers_are_refused_by_the_first_differing_token(models, questions):
    config = settings(models, questions, teacher={"path": models["other"]})
    check_fails(config, ModelError, r"different tokenizers: token \d+ is 'x' for student and 'y' for teacher")


def test_missing_models_and_data_are_told_together(models, questions, tmp_path):
    config = settings(
        models, questions, teacher={"path": str(tmp_path / "none")}, data={"train": {"path": "./no.jsonl"}}
    )
    fault = check_fails(config, ConfigError, "cannot be used")
    assert isinstance(fault, ConfigError)
    assert len(fault.faults) == 2
    assert [found.key for found in fault.faults] == ["teacher.path", "data.train.path"]
    assert "data.train.path = ./no.jsonl is a file that does not exist" in str(fault.faults[1])


def test_one_fault_keeps_its_own_kind(models, questions, tmp_path):
    check_fails(
        settings(models, questions, student={"path": str(tmp_path / "none")}), ModelError, r"student\.path"
    )
    (tmp_path / "empty.jsonl").write_text("")
    empty = {"train": {"path": str(tmp_path / "empty.jsonl")}, "template": "plain"}
    check_fails(settings(models, questions, data=empty), DataError, r"data\.train\.path = .* is empty")


def test_a_prompt_with_no_room_for_an_answer_is_refused(models, questions):
    wide = {"train": {"path": questions}, "template": "plain", "max_prompt_tokens": 250}
    fault = check_fails(
        settings(models, questions, data=wide), ConfigError, "leaves no room for an answer of 32 tokens"
    )
    assert isinstance(fault, ConfigError)
    assert [found.also[-1] for found in fault.faults] == ["student.path", "teacher.path"]
    assert {found.key for found in fault.faults} == {"data.max_prompt_tokens"}
    assert "set data.max_prompt_tokens=224" in fault.faults[0].fix
    check_fails(
        settings(models, questions, text={"path": questions, "column": "instruction", "block_tokens": 300}),
        ConfigError,
        r"text\.block_tokens = 300 is more than the 256 positions of student\.path = ",
    )


def test_a_plan_that_exceeds_the_declared_resources_is_refused(models, questions):
    check_fails(
        settings(models, questions, cluster={"learner_cpus": 1.0}),
        ConfigError,
        r"reserves 3\.2 CPUs \(learner 2 x 1, rollout 1 x 0\.5, teacher 1 x 0\.5, writer 0\.2\), and a local"
        r" Ray cluster declares 2; lower cluster\.learner_cpus",
    )
    check_run(settings(models, questions, cluster={"learner_cpus": 1.0, "cpus": 4}))
    check_fails(settings(models, questions, cluster={"rollout_gpus": 100}), ConfigError, "reserves 100 GPUs")


def test_a_process_bound_to_one_core_plans_one_thread_and_says_what_to_do(models, questions, monkeypatch):
    here = {p.role: p.threads for p in check_run(settings(models, questions)).processes}
    assert here == {"learner": 1, "rollout": 2, "teacher": 2, "writer": 1}  # two ranks share two cores
    on_cores(1, monkeypatch)
    check_fails(
        settings(models, questions), ConfigError, r"declares 1; .*or declare more \(cluster\.cpus=2\)"
    )
    plan = check_run(settings(models, questions, cluster={"cpus": 2}))
    assert {p.threads for p in plan.processes} == {1}


def test_the_cores_of_this_machine_are_planned_for_no_other(models, questions):
    away = {"address": "ray://host:10001"}
    plan = check_run(settings(models, questions, cluster=away))
    assert {p.role: p.threads for p in plan.processes} == {
        "learner": None, "rollout": None, "teacher": None, "writer": 1
    }  # fmt: skip
    console = Console(file=io.StringIO(), width=80, record=True)
    console.print(render(plan))
    (row,) = [line.split() for line in console.export_text().splitlines() if "threads" in line]
    assert row == ["threads", "all", "all", "all", "1"]
    plan = check_run(settings(models, questions, cluster={**away, "threads": 6}))
    assert [p.threads for p in plan.processes] == [None, 6, 6, 1]  # ranks share those of their machine


def test_what_another_cluster_declares_is_left_to_the_moment_of_reserving(models, questions):
    plan = check_run(
        settings(models, questions, cluster={"learner_cpus": 50.0, "address": "ray://host:10001"})
    )
    assert plan.where == "the Ray cluster at ray://host:10001"


def test_impossible_divisions_are_refused_before_anything_is_loaded(models, questions):
    check_fails(
        settings(models, questions, learner={"world_size": 3}, cluster={"learner_cpus": 0.1}),
        ConfigError,
        r"learner\.batch_size = 64 does not divide over learner\.world_size = 3; try 66",
    )


def test_a_cache_too_small_for_one_answer_is_refused(models, questions):
    config = settings(models, questions, rollout={"kv_cache_gib": 1e-5, "max_new_tokens": 32})
    check_fails(config, ConfigError, r"rollout\.kv_cache_gib = 1e-05 holds .* takes 64; try ")


def test_attention_heads_that_vllm_does_not_take_on_cpus_are_refused(models, questions):
    odd = replace(check_run(settings(models, questions)).student, head_dim=48)
    (fault,) = rules.engine_faults("student", odd, ClusterConfig())
    assert "attention heads of size 48" in str(fault)
    assert rules.engine_faults("student", odd, ClusterConfig(rollout_gpus=1)) == []


def test_rouge_l_without_right_answers_is_refused_and_reverse_kl_is_not(models, questions, tmp_path):
    path = tmp_path / "bare.jsonl"
    path.write_text('{"instruction": "a"}\n{"instruction": "b", "output": "c"}\n{"instruction": "d"}\n')
    both = {
        "train": {"path": questions},
        "validation": {"path": str(path)},
        "template": "plain",
        "max_prompt_tokens": 32,
    }
    config = settings(models, questions, data=both, validation={"metric": "rouge_l"})
    check_fails(config, DataError, r"validation\.metric = rouge_l .* 2 of 3 prompts .*metric=reverse_kl")
    plan = check_run(settings(models, questions, data=both, validation={"metric": "reverse_kl"}))
    assert plan.data.records["validation"] == 3


def test_a_long_prompt_is_dropped_with_a_note_and_the_rest_is_used(models, questions, tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text('{"instruction": "a"}\n' + json.dumps({"instruction": "x" * 40}) + "\n")
    long = {"train": {"path": str(path)}, "template": "plain", "max_prompt_tokens": 32}
    plan = check_run(settings(models, questions, data=long))
    assert plan.data.records == {"train": 1}
    assert "data.train: 1 records are dropped (prompt_too_long)" in plan.notes


def test_a_run_on_given_answers_needs_no_engine_and_may_have_no_teacher(models, questions):
    config = settings(models, questions, teacher=None, objective={"kind": "sft"})
    assert [p.role for p in check_run(config).processes] == ["learner", "writer"]


def test_the_paper_s_true_size_is_planned_without_loading_it(tmp_path, questions):
    """GPT-2 1.5B to 120M: the figures of the models themselves, from their settings."""
    from transformers import GPT2Config

    for name, sizes in {"teacher": (1600, 48, 25), "student": (768, 12, 12)}.items():
        folder = tiny_model("gpt2", tmp_path / name)
        width, layers, heads = sizes
        GPT2Config(
            n_embd=width,
            n_layer=layers,
            n_head=heads,
            vocab_size=128,
            n_positions=256,
            architectures=["GPT2LMHeadModel"],
            bos_token_id=None,
            eos_token_id=1,
        ).save_pretrained(folder)
        pretend_weights(folder)
    there = {name: str(tmp_path / name) for name in ("teacher", "student")}
    plan = check_run(settings(there, questions, rollout={"max_new_tokens": 32, "kv_cache_gib": 1.0}))
    assert plan.teacher is not None
    assert plan.teacher.parameters == 48 * (12 * 1600**2 + 13 * 1600) + 2 * 1600 + (128 + 256) * 1600
    assert parts(plan)["rollout"]["teacher"] > 4 * 1_400_000_000
    assert Path(there["teacher"], "model.safetensors").stat().st_blocks * 512 < MIB


def test_a_preset_that_the_run_file_overrides_is_named_with_both_values(models, questions):
    opd: dict[str, Any] = {
        "objective": {"preset": "opd"},
        "rollout": {"teacher_mix": 0, "max_new_tokens": 32},
    }
    plain = check_run(settings(models, questions, **opd))
    assert not [note for note in plain.notes if "objective.preset" in note]
    opd["objective"] |= {"gamma": 0.5, "clip": "upper"}
    notes = check_run(settings(models, questions, **opd, learner={"num_iterations": 4})).notes
    for words in (
        "objective.gamma = 0, and this run has 0.5",
        "objective.clip = none, and this run has upper",
        "learner.num_iterations = 1, and this run has 4",
    ):
        assert f"objective.preset = opd sets {words}" in notes

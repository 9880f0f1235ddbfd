"""The pilot's runs as chains: set-up, six methods by three seeds from one start, one evaluation of all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Settings = dict[str, Any]
METHODS: dict[str, Settings] = {
    "sft": {"objective": {"kind": "sft"}},
    "kd": {"objective": {"kind": "kd", "divergence": "forward_kl", "lm_share": 0.5}},
    "seqkd": {"objective": {"kind": "sft"}},
    "gkd": {
        "objective": {"kind": "kd", "divergence": "jsd", "jsd_beta": 0.5, "sampled_share": 0.5},
        "rollout": {"teacher_mix": 0.0},
    },
    "opd": {"objective": {"kind": "minillm", "preset": "opd"}, "rollout": {"teacher_mix": 0.0}},
    "minillm": {"objective": {"kind": "minillm"}, "learner": {"num_iterations": 4}},
}
"""Name -> what it has other than the rest. All train on as many student positions, at one step size."""
LEARNER: Settings = {
    "world_size": 1, "batch_size": 32, "micro_batch_size": 16, "num_iterations": 1, "max_steps": 1000,
}  # fmt: skip
SET: Settings = {
    "rollout_batch_size": 256, "max_new_tokens": 56, "max_num_seqs": 128, "chunk": 128, "kv_cache_gib": 0.5,
}  # fmt: skip
"""Stories are 48 tokens long, one or two more when they are tokenised again, and an end token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the one who calls chooses."""

    budget: int
    """Trained student positions of each run."""
    lr: float
    train_seeds: int
    eval_seeds: int
    every: int
    """Optimiser steps between two looks at the validation prompts."""
    small: bool
    """A few steps of everything."""


def runs(asked: Asked, validation: str) -> dict[str, Settings]:
    """A phase for each method and seed."""
    found: dict[str, Settings] = {}
    for seed in range(asked.train_seeds):
        for name, own in METHODS.items():
            learner = {
                **LEARNER,
                **own.get("learner", {}),
                "token_budget": asked.budget,
                "optimizer": {"lr": asked.lr, "warmup_steps": 10},
            }
            phase: Settings = {"do": "train", "student": {"path": "${output_dir}/start/last"}, "seed": seed}
            phase |= {**own, "learner": learner, "save_steps": 10_000}
            phase |= {"eval_steps": asked.every, "validation": {"metric": "reverse_kl"}}
            phase["data"] = {"validation": {"path": validation}}
            if name == "seqkd":
                phase["data"]["train"] = {"path": "${output_dir}/answers/answers.jsonl"}
            found[f"{name}-{seed}"] = phase
    return found


def chain(
    asked: Asked, out: str, *, teacher: str, data: str, template: str, start: Settings,
    before: dict[str, Settings], tests: list[str],
) -> Settings:  # fmt: skip
    """All of one pair: `before` makes the teacher, if need be, `start` the student that all begin with."""
    methods, train = runs(asked, f"{data}/validation.jsonl"), {"path": f"{data}/train.jsonl"}
    models = [teacher, "${output_dir}/start/last", *(f"${{output_dir}}/{name}/last" for name in methods)]
    return {
        "output_dir": out,
        "base": {
            "teacher": {"path": teacher},
            "data": {"train": train, "template": template, "max_prompt_tokens": 128},
            "rollout": SET,
            "teacher_server": {"batch_tokens": 4096},
        },
        "phases": {
            **before,
            "start": {"do": "sft", **start},
            "answers": {
                "do": "generate",
                "keep_cut": True,  # stories go on; an end learned behind a cut is SeqKD's own fault here
                "data": {"train": {**train, "limit": 3000}},
                "rollout": {"max_new_tokens": 48},
            },
            **methods,
            "eval": {
                "do": "eval", "models": models, "num_seeds": asked.eval_seeds,
                "data": [f"{data}/{name}.jsonl" for name in tests],
                "engine": {"max_new_tokens": 48, "max_num_seqs": 128, "chunk": 128},
            },
        },
    }  # fmt: skip


def dolly(asked: Asked, out: str, data: str, models: str) -> Settings:
    """A teacher and a student from nothing, with one tokenizer, on Dolly's short records."""
    steps = {"teacher": 10, "start": 5} if asked.small else {"teacher": 120, "start": 60}
    learner = {**LEARNER, "batch_size": 64, "micro_batch_size": 32}
    learner["optimizer"] = {"lr": 1.0e-3, "warmup_steps": 20}
    return chain(
        asked,
        out,
        teacher="${output_dir}/teacher/last",
        data=data,
        template="chat",
        before={
            "teacher": {
                "do": "sft",
                "model": "teacher",
                "teacher": {"path": f"{models}/teacher/best"},
                "learner": {**learner, "max_steps": steps["teacher"]},
            }
        },
        start={
            "student": {"path": f"{models}/student/best"},
            "learner": {**learner, "max_steps": steps["start"]},
        },
        tests=["test", "labels"],
    )


def stories(asked: Asked, out: str, data: str, teacher: str) -> Settings:
    """A teacher of stories and one of its five layers."""
    learner = {**LEARNER, "batch_size": 64, "micro_batch_size": 32, "max_steps": 5 if asked.small else 200}
    learner["optimizer"] = {"lr": 3.0e-3, "warmup_steps": 20}
    return chain(
        asked,
        out,
        teacher=teacher,
        data=data,
        template="plain",
        before={},
        start={"student": {"path": f"{data}/cut"}, "learner": learner},
        tests=["test"],
    )

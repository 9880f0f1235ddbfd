"""A tiny teacher, a tinier student and questions for them, and a run over both on Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from minillm_ray.common.config import RunConfig
from tests.tiny_models import tiny_model

WORDS = ["red", "cat", "sun", "dog", "tree", "blue", "fish", "moon"]


@pytest.fixture(scope="session")
def questions(tmp_path_factory) -> Path:
    """Forty questions with references, as JSON Lines."""
    path = tmp_path_factory.mktemp("data") / "questions.jsonl"
    rows = [
        {"instruction": f"say {WORDS[i % 8]} {WORDS[i // 8]}", "input": "", "output": WORDS[i % 8]}
        for i in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory) -> tuple[Path, Path]:
    """(teacher, student): random LLaMA models of unlike size with one tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    teacher = tiny_model("llama", folder / "teacher", seed=1, width=96, layers=2, tied=False)
    return teacher, tiny_model("llama", folder / "student", seed=2, width=64, layers=1, tied=True)


def tiny_run(teacher: Path, student: Path, questions: Path, out: Path, **changes: Any) -> RunConfig:
    """Two sets of 8 answers, four optimiser steps on two ranks; `changes` replace whole sections' keys."""
    settings: dict[str, Any] = {
        "student": {"path": str(student)},
        "teacher": {"path": str(teacher)},
        "data": {"train": {"path": str(questions)}, "template": "chat", "max_prompt_tokens": 64},
        "rollout": {"answers": 8, "max_new_tokens": 8, "max_sequences": 8, "chunk": 4, "cache_gib": 0.02},
        "learner": {
            "ranks": 2,
            "steps": 4,
            "batch_size": 8,
            "micro_batch": 2,
            "inner_epochs": 2,
            "optimizer": {"lr": 1e-3},
        },
        "checkpoint_every": 2,
        "out": str(out),
        "cluster": {"rollout_cpus": 0.1, "teacher_cpus": 0.1, "learner_cpus": 0.1, "writer_cpus": 0.1},
    }
    for section, values in changes.items():
        settings[section] = {**settings.get(section, {}), **values} if isinstance(values, dict) else values
    return RunConfig.model_validate(settings)

"""Questions, and settings of a run over tiny models that takes four optimiser steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from minillm_ray.common.config.run import RunConfig

WORDS = ["red", "cat", "sun", "dog", "tree", "blue", "fish", "moon"]


def write_questions(path: Path) -> Path:
    """Forty questions with references, as JSON Lines."""
    rows = [
        {"instruction": f"say {WORDS[i % 8]} {WORDS[i // 8]}", "input": "", "output": WORDS[i % 8]}
        for i in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tiny_run(teacher: Path, student: Path, questions: Path, out: Path, **changes: Any) -> RunConfig:
    """Two sets of 8 answers, four optimiser steps on two ranks; `changes` replace whole sections' keys."""
    settings: dict[str, Any] = {
        "student": {"path": str(student)},
        "teacher": {"path": str(teacher)},
        "data": {"train": {"path": str(questions)}, "template": "chat", "max_prompt_tokens": 64},
        "rollout": {
            "rollout_batch_size": 8,
            "max_new_tokens": 8,
            "max_num_seqs": 8,
            "chunk": 4,
            "kv_cache_gib": 0.02,
        },
        "learner": {
            "world_size": 2,
            "max_steps": 4,
            "batch_size": 8,
            "micro_batch_size": 2,
            "num_iterations": 2,
            "optimizer": {"lr": 1e-3},
        },
        "save_steps": 2,
        "verify": {"referee": False},  # tests/flow/test_verify.py has one
        "output_dir": str(out),
        "cluster": {"rollout_cpus": 0.1, "teacher_cpus": 0.1, "learner_cpus": 0.1, "writer_cpus": 0.1},
    }
    for section, values in changes.items():
        settings[section] = {**settings.get(section, {}), **values} if isinstance(values, dict) else values
    return RunConfig.model_validate(settings)

"""What `minillm sft` and `minillm generate` make of a run file before it is checked as one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ...common.config.run import RunConfig
from .loader import Change, Values, load_run, merge_defaults

Tuned = Literal["student", "teacher"]
"""Which of a run file's models is fine-tuned."""
DEFAULTS: dict[str, Any] = {
    "objective": {"kind": "sft"},
    "validation": {"metric": "loss"},
    "learner": {"optimizer": {"lr": 5e-5, "schedule": "cosine", "weight_decay": 1e-2}},
}
"""What fine-tuning has other than distillation where the run file is silent. The paper searches learning
rates from 5e-6 to 5e-4 by size of the model; the reference decays by a cosine."""


def load_sft(path: Path | str, overrides: Sequence[str] = (), model: Tuned = "student") -> RunConfig:
    """Read a run file as one that fine-tunes `model`. Raises ConfigError as `load_run` does."""
    return load_run(path, overrides, as_sft(model))


def as_sft(model: Tuned = "student") -> Change:
    """The change that makes a run file one of fine-tuning `model`; the run's own settings win."""

    def change(values: Values, faults: list[str]) -> Values:
        tuned = merge_defaults(DEFAULTS, values)
        if model == "teacher":
            if not tuned.get("teacher"):
                faults.append("teacher is missing, and it is the model to fine-tune; set teacher.path")
            else:
                tuned |= {"student": tuned["teacher"], "teacher": None}
        objective = tuned["objective"]
        kind = objective.get("kind") if isinstance(objective, dict) else "sft"
        if kind != "sft":
            faults.append(
                f"objective.kind = {kind}, and fine-tuning learns from given answers alone; set"
                " objective.kind=sft, or use `minillm train`"
            )
        return tuned

    return change


Author = Literal["teacher", "student"]
"""Which of a run file's models answers."""


def as_generation(by: Author = "teacher") -> Change:
    """The change that makes a run file one in which `by` answers data.train, and nobody learns."""

    def change(values: Values, faults: list[str]) -> Values:
        model = values.get(by)
        if not model:
            faults.append(f"{by} is missing, and it is the model that answers; set {by}.path")
        rollout = values.get("rollout")
        samples = rollout.get("samples", 1) if isinstance(rollout, dict) else 1
        samples = samples if isinstance(samples, int) else 1  # what it is instead is told where it stands
        forced = {
            "objective": {"kind": "minillm", "sampled_share": None},
            "rollout": {"rollout_batch_size": samples, "teacher_mix": 0},
            "learner": {"batch_size": samples, "micro_batch_size": 1, "world_size": 1},
        }
        data = values.get("data")
        if isinstance(data, dict):
            values = values | {"data": data | {"validation": None, "test": None}}
        # A run needs a teacher; here it is the same model, and is never asked.
        return merge_defaults(values, forced) | {
            "student": model or {"path": "-"},
            "teacher": model,
            "text": None,
        }

    return change

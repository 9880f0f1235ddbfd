"""Run files read in another way: as fine-tuning (`minillm sft`), or as a generation (`minillm generate`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ...common.config.generate import Author, GenerateConfig, GenerateData, GenerateEngine
from ...common.config.run import RunConfig
from ...common.errors import ABSENT, Fault
from .loader import Change, Values, load_run, merge_defaults, parsed, unrelated

Tuned = Literal["student", "teacher"]
"""Which of a run file's models is fine-tuned."""
DEFAULTS: dict[str, Any] = {
    "objective": {"kind": "sft"},
    "validation": {"metric": "loss"},
    "learner": {"optimizer": {"lr": 5e-5, "schedule": "cosine", "weight_decay": 1e-2}},
}
"""Defaults of fine-tuning that differ from those of distillation. The paper searches learning rates from 5e-6
to 5e-4 by size of the model; the reference decays by a cosine."""


def load_sft(path: Path | str, overrides: Sequence[str] = (), model: Tuned = "student") -> RunConfig:
    """Read a run file as one that fine-tunes `model`. Raises ConfigError as `load_run` does."""
    return load_run(path, overrides, as_sft(model))


def as_sft(model: Tuned = "student") -> Change:
    """The change that makes a run file one of fine-tuning `model`; the run's own settings win."""

    def change(values: Values, faults: list[Fault]) -> Values:
        tuned = merge_defaults(DEFAULTS, values)
        if model == "teacher":
            if not tuned.get("teacher"):
                reason = "is missing, and it is the model to fine-tune"
                faults.append(Fault("teacher", ABSENT, reason, "set teacher.path"))
            else:
                tuned |= {"student": tuned["teacher"], "teacher": None}
        objective = tuned["objective"]
        kind = objective.get("kind") if isinstance(objective, dict) else "sft"
        if kind in ("minillm", "kd"):
            faults.append(
                Fault(
                    "objective.kind",
                    kind,
                    "is not fine-tuning, which learns from given answers only",
                    "set objective.kind=sft, or use `minillm train`",
                )
            )
        return tuned

    return change


def generation_of(values: Values, by: Author, keep_cut: bool, faults: list[Fault]) -> GenerateConfig | None:
    """What a run file says of a generation in which `by` answers data.train; None if there is a fault.

    Each setting of the file must be right by itself, those of the learner too; what contradicts each other
    only in training does not matter here.
    """
    found: list[Fault] = []
    if not values.get(by):
        reason = "is missing, and it is the model that answers"
        found.append(Fault(by, ABSENT, reason, f"set {by}.path"))
    # A run needs a student, a generation by the teacher does not.
    stand_in = {name: values.get(name) or {"path": "-"} for name in ("student", by)}
    run = parsed(RunConfig, {**values, **stand_in}, found)
    if run is None or run.data.train is None:
        if run is not None:
            missing = Fault("data.train", ABSENT, "is missing", "set data.train.path, the questions")
            found += unrelated([missing], found)
        faults += found
        return None
    config = _generation(run, by, keep_cut)
    faults += [*found, *unrelated(config.faults(), found)]
    return None if found else config.resolved()


def _generation(run: RunConfig, by: Author, keep_cut: bool) -> GenerateConfig:
    model = run.teacher if by == "teacher" and run.teacher is not None else run.student
    data = run.data.model_dump(include=set(GenerateData.model_fields))
    engine = run.rollout.model_dump(include=set(GenerateEngine.model_fields))
    return GenerateConfig(
        by=by,
        model=model,
        keep_cut=keep_cut,
        data=GenerateData(**data),
        rollout=GenerateEngine(**engine),
        verify=run.verify,
        cluster=run.cluster,
        plugins=run.plugins,
        seed=run.seed,
        output_dir=run.output_dir,
    )

"""The README of a saved student: what it is, how it was trained, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ... import __version__
from ...common.config.run import RunConfig

STUDENTS = ("best", "last")
"""Folders that say nothing without the run they lie in."""
_TEMPLATE = """---
library_name: transformers
pipeline_tag: text-generation
base_model: {student}
tags: [on-policy-distillation, minillm, minillm-ray]
---
# {name}

{origin}, trained with minillm-ray {version}
({kind}, optimiser step {step} of {steps}).

| setting | value |
|---|---|
{settings}

| measured | value |
|---|---|
{measured}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
```

`vllm serve {folder}` serves it.
"""


def write_card(folder: Path, config: RunConfig, step: int, measured: Mapping[str, float]) -> None:
    """Write README.md into a student's folder."""
    settings = {
        "objective.kind": config.objective.kind,
        "objective.preset": config.objective.preset,
        "rollout.teacher_mix": config.rollout.teacher_mix,
        "rollout.temperature": config.rollout.temperature,
        "learner.batch_size": config.learner.batch_size,
        "learner.num_iterations": config.num_iterations,
        "learner.optimizer.lr": config.learner.optimizer.lr,
        "training data": " and ".join(_public(p.path) for p in (config.data.train, config.text) if p),
        "seed": config.seed,
    }
    text = _TEMPLATE.format(
        name=folder.name,
        folder=folder.name,
        student=_public(config.student.path),
        origin=_origin(config),
        version=__version__,
        kind={
            "minillm": "on-policy distillation, MiniLLM",
            "sft": "fine-tuning",
            "kd": f"distillation by {config.objective.divergence}",
        }[config.objective.kind],
        step=step,
        steps=config.learner.max_steps,
        settings="\n".join(f"| {k} | {v} |" for k, v in settings.items()),
        measured="\n".join(f"| {k} | {v:.4g} |" for k, v in measured.items()) or "| nothing | |",
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _origin(config: RunConfig) -> str:
    if config.objective.kind == "sft" or config.teacher is None:
        return f"`{_public(config.student.path)}`, fine-tuned"
    return f"A student of `{_public(config.teacher.path)}`, started from `{_public(config.student.path)}`"


def _public(path: str) -> str:
    """A hub name as it is; only the end of a path on this machine."""
    here = Path(path)
    if not here.is_absolute():
        return path
    return "/".join(here.parts[-2:]) if here.name in STUDENTS else here.name

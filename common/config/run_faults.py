"""What can be wrong between the settings of a run that are each valid."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from ..errors import ABSENT, ConfigError, Fault
from ..plugins import plugin_names
from .base import METRICS_SINKS
from .objective import DIVERGENCES, OTHER_NAMES

if TYPE_CHECKING:
    from .run import RunConfig


def run_faults(config: RunConfig) -> list[Fault]:
    """All faults, each with key, value and way out."""
    data = config.data
    sources = {"data.train": data.train, "data.validation": data.validation, "data.test": data.test}
    return [
        *_batch_faults(config),
        *_learner_faults(config),
        *_teacher_faults(config),
        *config.objective.faults(),
        *_sampling_faults(config),
        *config.prompts.faults(sources),
        *_data_faults(config),
        *_plugin_faults(config),
    ]


def _batch_faults(config: RunConfig) -> list[Fault]:
    """Whether answers divide into groups, sets into batches, and batches over ranks."""
    rollout, learner = config.rollout, config.learner
    found = []
    if rollout.rollout_batch_size % rollout.num_generations:
        found.append(
            Fault(
                "rollout.rollout_batch_size",
                rollout.rollout_batch_size,
                f"is not a multiple of rollout.num_generations = {rollout.num_generations}",
                f"try {_multiple(rollout.rollout_batch_size, rollout.num_generations)}",
                also=("rollout.num_generations",),
            )
        )
    if rollout.rollout_batch_size % learner.batch_size:
        found.append(
            Fault(
                "rollout.rollout_batch_size",
                rollout.rollout_batch_size,
                f"does not divide into batches of learner.batch_size = {learner.batch_size}",
                f"try {_multiple(rollout.rollout_batch_size, learner.batch_size)}",
                also=("learner.batch_size",),
            )
        )
    if learner.batch_size % learner.world_size:
        found.append(
            Fault(
                "learner.batch_size",
                learner.batch_size,
                f"does not divide over learner.world_size = {learner.world_size}",
                f"try {_multiple(learner.batch_size, learner.world_size)}",
                also=("learner.world_size",),
            )
        )
    if learner.micro_batch_size * learner.world_size > learner.batch_size:
        found.append(
            Fault(
                "learner.micro_batch_size",
                learner.micro_batch_size,
                f"on {learner.world_size} ranks is more than learner.batch_size = {learner.batch_size}",
                f"try learner.micro_batch_size={max(1, learner.batch_size // learner.world_size)}",
                also=("learner.world_size", "learner.batch_size"),
            )
        )
    return found


def _multiple(number: int, of: int) -> int:
    """The next multiple of `of` from `number` on."""
    return -(-number // of) * of


def _learner_faults(config: RunConfig) -> list[Fault]:
    learner, optimizer = config.learner, config.learner.optimizer
    found = []
    if learner.offload == "cpu" and learner.zero_stage == 0:
        found.append(
            Fault(
                "learner.offload",
                learner.offload,
                "needs a partitioned optimiser, and learner.zero_stage = 0",
                "set learner.zero_stage to 1, 2 or 3",
                also=("learner.zero_stage",),
            )
        )
    if optimizer.min_lr > optimizer.lr:
        found.append(
            Fault(
                "learner.optimizer.min_lr",
                optimizer.min_lr,
                f"is above learner.optimizer.lr = {optimizer.lr:g}",
                "try 0",
                also=("learner.optimizer.lr",),
            )
        )
    if optimizer.min_lr and optimizer.schedule != "cosine":
        found.append(
            Fault(
                "learner.optimizer.min_lr",
                optimizer.min_lr,
                f"is for a cosine schedule, and learner.optimizer.schedule = {optimizer.schedule}",
                "set learner.optimizer.schedule=cosine, or learner.optimizer.min_lr=0",
                also=("learner.optimizer.schedule",),
            )
        )
    if learner.dropout and config.samples_answers:
        found.append(
            Fault(
                "learner.dropout",
                learner.dropout,
                "cannot be combined with sampled answers: the student in training would not be the one that"
                " sampled",
                "set learner.dropout=null",
                also=("objective.sampled_share", "objective.kind"),
            )
        )
    return found


def _teacher_faults(config: RunConfig) -> list[Fault]:
    if config.teacher is not None:
        return []
    found = []
    kind = config.objective.kind
    if kind != "sft":
        found.append(
            Fault(
                "teacher",
                ABSENT,
                f"is missing, and objective.kind = {kind} needs it",
                "set teacher.path",
                also=("objective.kind",),
            )
        )
    if config.validation.metric == "reverse_kl":
        found.append(
            Fault(
                "validation.metric",
                "reverse_kl",
                "needs a teacher, and none is set",
                "set teacher.path, or validation.metric=rouge_l",
                also=("teacher",),
            )
        )
    return found


def _sampling_faults(config: RunConfig) -> list[Fault]:
    """What the way of sampling does not go with."""
    rollout, objective = config.rollout, config.objective
    found = []
    truncates = rollout.top_p < 1 or rollout.top_k > 0
    if truncates and objective.kind == "minillm" and objective.preset == "reference":
        found.append(
            Fault(
                "objective.preset",
                objective.preset,
                "equals the reference number for number only without truncation, and rollout.top_p ="
                f" {rollout.top_p:g}, rollout.top_k = {rollout.top_k}",
                "set rollout.top_p=1 rollout.top_k=0, or objective.preset=paper with the reference's settings"
                " written out",
                also=("rollout.top_p", "rollout.top_k"),
            )
        )
    if objective.kind == "minillm" and objective.preset == "opd" and rollout.teacher_mix > 0:
        found.append(
            Fault(
                "objective.preset",
                objective.preset,
                "counts answers as the student's own, and rollout.teacher_mix ="
                f" {rollout.teacher_mix:g} mixes the teacher in",
                "set rollout.teacher_mix=0",
                also=("rollout.teacher_mix",),
            )
        )
    fraction, size, each = objective.share_sampled, rollout.rollout_batch_size, rollout.num_generations
    groups = fraction * size / each
    if 0 < fraction < 1 and size % each == 0 and abs(groups - round(groups)) > 1e-6:
        found.append(
            Fault(
                "objective.sampled_share",
                fraction,
                f"of rollout.rollout_batch_size = {size} is not a whole number of prompts with"
                f" rollout.num_generations = {each}",
                f"try objective.sampled_share={round(groups) * each / size:g}",
                also=("rollout.rollout_batch_size", "rollout.num_generations"),
            )
        )
    return found


def _data_faults(config: RunConfig) -> list[Fault]:
    """Whether there is something to learn from, and only one set that chooses the best student."""
    found: list[Fault] = []
    train, text = config.data.train, config.text
    if train is None and not config.text_alone:
        found.append(
            Fault(
                "data.train",
                ABSENT,
                "is missing",
                "set data.train.path, or learn from plain text only: objective.kind=sft and text.path",
                also=("text", "objective.kind"),
            )
        )
    held = text.validation_blocks if text else 0
    if held and not config.text_alone:
        found.append(
            Fault(
                "text.validation_blocks",
                held,
                "is for runs that learn from text only, and this one has"
                f" {'data.train' if train else 'no text to learn from'}",
                "set text.validation_blocks=0",
                also=("data.train",),
            )
        )
    elif held and config.data.validation is not None:
        found.append(
            Fault(
                "text.validation_blocks",
                held,
                "and data.validation would both choose the best student",
                "set one of them only (text.validation_blocks=0 or data.validation=null)",
                also=("data.validation",),
            )
        )
    if config.given_answers and train and train.output is None and train.messages is None:
        ways = "name the column" if config.objective.kind == "sft" else "name the column, or set"
        found.append(
            Fault(
                "data.train.output",
                None,
                f"leaves no answers, and {config.given_answers} of rollout.rollout_batch_size ="
                f" {config.rollout.rollout_batch_size} come from the data (objective.kind ="
                f" {config.objective.kind})",
                ways if config.objective.kind == "sft" else f"{ways} objective.sampled_share=1",
                also=("objective.kind", "objective.sampled_share", "rollout.rollout_batch_size"),
            )
        )
    return found


def _plugin_faults(config: RunConfig) -> list[Fault]:
    """Whether what is asked for by name is brought by the package or by a plugin."""
    found = []
    asked = [
        ("divergences", "objective.divergence", (config.objective.divergence,), DIVERGENCES),
        ("metrics_sinks", "metrics_sinks", config.metrics_sinks, METRICS_SINKS),
    ]
    for kind, key, names, own in asked:
        try:
            known = [*own, *plugin_names(kind, config.plugins)]
        except ConfigError as error:
            return [*error.faults]
        for name in names:
            if name not in known:
                close = OTHER_NAMES.get(name) or next(iter(difflib.get_close_matches(name, known, 1)), None)
                hint = f"did you mean {close}?" if close else f"known are {', '.join(known)}"
                found.append(
                    Fault(key, name, "is neither ours nor a plugin's", f"{hint}; plugins=[...] names modules")
                )
    return found

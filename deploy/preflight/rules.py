"""What can be wrong between settings, models, data and machines, as faults; and what is worth a note."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

import ray

from ...actors.vllm_engine import end_of_sequence_ids
from ...common.config.data import TextConfig
from ...common.config.run import ClusterConfig, EngineConfig, ModelConfig, RunConfig
from ...common.errors import ABSENT, DataError, Fault, shown
from ...common.types import Prompt
from ..data.load import RunData
from ..data.tokenize import Limit
from ..models import families
from ..models.inspect import ModelFacts
from ..runtime.cluster import local_cpus
from ..runtime.placement import Bundle
from .memory import cache_tokens

CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Sizes of an attention head that vLLM 0.32 takes on CPUs."""
LOCAL = "a local Ray cluster"


def room_faults(name: str, facts: ModelFacts, max_prompt: Limit, max_answer: Limit) -> list[Fault]:
    """Whether the longest prompt with the longest answer fits into the positions of the model `name`."""
    context = facts.context
    if context is None or max_prompt.value + max_answer.value <= context:
        return []
    if max_answer.value < context:
        way_out = f"set {max_prompt.key}={context - max_answer.value}, or a smaller {max_answer.key}"
    else:
        way_out = f"set {max_answer.key} well below {context}"
    return [
        Fault(
            max_prompt.key,
            max_prompt.value,
            f"leaves no room for an answer of {max_answer.value} tokens in the {context} positions of"
            f" {name}.path = {facts.path}",
            way_out,
            also=(max_answer.key, f"{name}.path"),
        )
    ]


def text_faults(name: str, facts: ModelFacts, text: TextConfig) -> list[Fault]:
    """Whether a block of plain text fits into the positions of the model `name`."""
    if facts.context is None or text.block_tokens <= facts.context:
        return []
    return [
        Fault(
            "text.block_tokens",
            text.block_tokens,
            f"is more than the {facts.context} positions of {name}.path = {facts.path}",
            f"try {facts.context}",
            also=(f"{name}.path",),
        )
    ]


def engine_faults(name: str, facts: ModelFacts, cluster: ClusterConfig) -> list[Fault]:
    """Whether vLLM, which will hold the model `name`, takes its family, and on CPUs its attention heads."""
    if facts.engine_refusal is not None:
        return [Fault(f"{name}.path", facts.path, facts.engine_refusal, families.WAY_OUT)]
    if cluster.rollout_gpus or facts.head_dim in CPU_HEAD_DIMS:
        return []
    return [
        Fault(
            f"{name}.path",
            facts.path,
            f"has attention heads of size {facts.head_dim}, and vLLM on CPUs takes"
            f" {', '.join(map(str, CPU_HEAD_DIMS))}",
            "use another model, or GPUs (cluster.rollout_gpus=1)",
            also=("cluster.rollout_gpus",),
        )
    ]


def cache_faults(
    section: str, engine: EngineConfig, models: Sequence[ModelFacts], max_tokens: int
) -> list[Fault]:
    """Whether the cache of an engine, set in `section`, holds at least one prompt with its answer."""
    room = cache_tokens(engine, models)
    if room >= max_tokens:
        return []
    given = engine.kv_cache_gib
    return [
        Fault(
            f"{section}.kv_cache_gib",
            given,
            f"holds the keys and values of {room} tokens, and one prompt with its answer takes {max_tokens}",
            f"try {1.1 * given * max_tokens / room:.2g}" if room else f"try {2 * given:g} or more",
        )
    ]


def end_faults(
    name: str, model: ModelConfig, vocabulary: int, max_answer: Limit, known: Sequence[int] = ()
) -> list[Fault]:
    """Whether an answer of the model `name` can end before its limit; `known` ids end one by the data."""
    ends = sorted({*end_of_sequence_ids(model.path, model.revision), *known})
    if any(end < vocabulary for end in ends):
        return []
    named = f"only {ends}, which are outside the {vocabulary} words" if ends else "no end-of-sequence token"
    return [
        Fault(
            f"{name}.path",
            model.path,
            f"names {named}, so every answer would run to {max_answer.key}",
            "set eos_token_id in its generation_config.json",
        )
    ]


def metric_errors(metric: str, prompts: Sequence[Prompt], has_teacher: bool) -> list[DataError]:
    """Whether validation.metric can be measured on the validation prompts."""
    bare = sum(not prompt.references for prompt in prompts)
    of_all = f"{bare} of {len(prompts)} prompts of data.validation"
    name_column = "name their column in data.validation.output"
    if metric == "rouge_l" and bare:
        reason = f"needs right answers, and {of_all} have none"
        way_out = f"set validation.metric=reverse_kl, or {name_column}"
    elif metric == "auto" and bare and not has_teacher:
        reason = f"has nothing to measure: {of_all} have no right answer, and there is no teacher"
        way_out = f"{name_column}, or set teacher.path"
    else:
        return []
    also = ("data.validation.output", "teacher")
    return [DataError(Fault("validation.metric", metric, reason, way_out, also=also))]


def preset_notes(config: RunConfig) -> list[str]:
    """Which settings of objective.preset the run file overrides."""
    return [
        f"objective.preset = {config.objective.preset} sets {name} = {shown(preset)}, and this run has"
        f" {shown(here)}"
        for name, (preset, here) in config.preset_overrides().items()
    ]


def data_notes(config: RunConfig, data: RunData) -> list[str]:
    """What is not used, is dropped, or comes twice."""
    notes = list(data.notes)
    for name, drops in data.dropped.items():
        if drops:
            reasons = ", ".join(sorted({drop.reason for drop in drops}))
            notes.append(f"data.{name}: {len(drops)} records are dropped ({reasons})")
    if config.text is not None and config.objective.kind == "sft" and not config.text_alone:
        notes.append("text is not used: objective.kind = sft learns from data.train only")
    mix = config.rollout.teacher_mix
    if config.objective.kind == "kd" and config.samples_answers and 0 < mix < 1:
        notes.append(
            f"kd learns from answers of student and teacher mixed (rollout.teacher_mix = {mix:g});"
            " GKD's and DistiLLM's are the student's own: rollout.teacher_mix=0"
        )
    name = "text" if config.text_alone else "train"
    have = data.records.get(name)
    need = max(config.sampled_answers // config.rollout.num_generations, config.given_answers)
    if have is not None and have < need:
        source = "text" if config.text_alone else "data.train"
        notes.append(f"a set takes {need} records, {source} has {have}: some come twice in it")
    return notes


def resource_faults(cluster: ClusterConfig, needed: Sequence[Bundle]) -> list[Fault]:
    """Whether `needed` and a writer reserve no more than is declared, as far as that is known."""
    have = declared(cluster)
    if have is None:
        return []
    need = {
        "CPU": sum(p.cpus for p in needed) + cluster.writer_cpus,
        "GPU": sum(p.gpus for p in needed),
    }
    found = []
    for kind, amount in need.items():
        if amount > have.get(kind, 0.0) + 1e-6:
            settings = tuple(f"cluster.{p.role}_{kind.lower()}s" for p in _one_each(needed))
            way_out = f"lower {', '.join(settings)}, or use fewer actors or ranks"
            if kind == "CPU" and where(cluster) == LOCAL:  # numbers, so roles that take turns share a core
                way_out += f", or declare more (cluster.cpus={math.ceil(amount - 1e-6)})"
            found.append(
                Fault(
                    "cluster",
                    ABSENT,
                    f"reserves {amount:g} {kind}s ({_terms(needed, kind, cluster)}), and {where(cluster)}"
                    f" declares {have.get(kind, 0.0):g}",
                    way_out,
                    also=settings,
                )
            )
    return found


def declared(cluster: ClusterConfig) -> Mapping[str, float] | None:
    """What Ray offers: the cluster that this process is in, or this machine; None where unknown."""
    if ray.is_initialized():
        return ray.cluster_resources()
    if cluster.address or os.environ.get("RAY_ADDRESS"):
        return None
    import torch

    return {"CPU": float(local_cpus(cluster)), "GPU": float(torch.cuda.device_count())}


def where(cluster: ClusterConfig) -> str:
    """The machine or cluster that a run will use, in words."""
    if ray.is_initialized():
        return "the Ray cluster that this process is connected to"
    if address := cluster.address or os.environ.get("RAY_ADDRESS"):
        return f"the Ray cluster at {address}"
    return LOCAL


def _one_each(needed: Sequence[Bundle]) -> list[Bundle]:
    return list({bundle.role: bundle for bundle in needed}.values())


def _terms(needed: Sequence[Bundle], kind: str, cluster: ClusterConfig) -> str:
    terms = []
    for one in _one_each(needed):
        count = sum(bundle.role == one.role for bundle in needed)
        terms.append(f"{one.role} {count} x {one.cpus if kind == 'CPU' else one.gpus:g}")
    if kind == "CPU":
        terms.append(f"writer {cluster.writer_cpus:g}")
    return ", ".join(terms)

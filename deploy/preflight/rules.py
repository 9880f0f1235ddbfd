"""What can be wrong between settings, models and declared machines, as faults with their way out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import ray

from ...actors.vllm_engine import end_of_sequence_ids
from ...common.config.data import TextConfig
from ...common.config.run import ClusterConfig, EngineConfig
from ...common.errors import ABSENT, Fault
from ..data.tokenize import Limit
from ..models.inspect import ModelFacts
from ..runtime.placement import Bundle
from .memory import cache_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Sizes of an attention head that vLLM 0.32 takes on CPUs."""


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
            f"leaves no room for an answer of {max_answer.value} tokens in the {context} positions of {name}"
            f" ({facts.path})",
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
            f"is more than the {facts.context} positions of {name} ({facts.path})",
            f"try {facts.context}",
            also=(f"{name}.path",),
        )
    ]


def head_faults(name: str, facts: ModelFacts, cluster: ClusterConfig) -> list[Fault]:
    """Whether vLLM, which will hold the model `name`, takes its attention heads on CPUs."""
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


def end_faults(name: str, path: str, vocabulary: int, max_answer: Limit) -> list[Fault]:
    """Whether an answer of the model `name` can end before its limit."""
    ends = end_of_sequence_ids(path)
    if any(end < vocabulary for end in ends):
        return []
    named = f"only {ends}, which are outside the {vocabulary} words" if ends else "no end-of-sequence token"
    return [
        Fault(
            f"{name}.path",
            path,
            f"names {named}, so every answer would run to {max_answer.key}",
            "set eos_token_id in its generation_config.json",
        )
    ]


def end_notes(path: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Whether given answers end as sampled ones do."""
    ends, given = end_of_sequence_ids(path), tokenizer.eos_token_id
    if not ends or given is None or given in ends:
        return []
    return [
        f"given answers end with token {given} (the tokenizer's), sampled ones with {ends} (the generation"
        " config's): what is learned from the first does not end the second"
    ]


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
            found.append(
                Fault(
                    "cluster",
                    ABSENT,
                    f"reserves {amount:g} {kind}s ({_terms(needed, kind, cluster)}), and {where(cluster)}"
                    f" declares {have.get(kind, 0.0):g}",
                    f"lower {', '.join(settings)}, or use fewer actors or ranks",
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

    cpus = int(cluster.cpus) if cluster.cpus is not None else os.cpu_count() or 1
    return {"CPU": float(cpus), "GPU": float(torch.cuda.device_count())}


def where(cluster: ClusterConfig) -> str:
    """The machine or cluster that a run will use, in words."""
    if ray.is_initialized():
        return "the Ray cluster that this process is connected to"
    if address := cluster.address or os.environ.get("RAY_ADDRESS"):
        return f"the Ray cluster at {address}"
    return "a local Ray cluster"


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

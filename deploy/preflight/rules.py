"""What can be wrong between settings, models and declared machines, each as one line with its way out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import ray

from ...actors.vllm_engine import end_of_sequence_ids
from ...common.config.run import ClusterConfig, RunConfig
from ..models.inspect import ModelFacts
from ..runtime.placement import Bundle, bundles, needs_rollouts
from .memory import cache_tokens, mixes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Sizes of an attention head that vLLM 0.32 takes on CPUs."""


def max_tokens(config: RunConfig) -> int:
    """Most tokens of a prompt and its answer, in training or measuring."""
    if not reads_prompts(config) and config.text is not None:
        return config.text.block_tokens
    longest = config.rollout.max_new_tokens
    if config.data.validation is not None or config.data.test is not None:
        longest = max(longest, config.validation.max_new_tokens or 0)
    return config.data.max_prompt_tokens + longest


def reads_prompts(config: RunConfig) -> bool:
    """Whether the run has any data but plain text."""
    return not config.text_alone or any((config.data.validation, config.data.test))


def model_faults(
    config: RunConfig, key: str, facts: ModelFacts, *, in_engine: bool | None = None
) -> list[str]:
    """Whether student or teacher (`key`) can read what it will be given, and vLLM its attention.

    `in_engine`: whether vLLM will hold it; None = as in a run.
    """
    found: list[str] = []
    prompt, need, context = config.data.max_prompt_tokens, max_tokens(config), facts.context
    answer = need - prompt
    if context is not None and need > context and reads_prompts(config):
        way_out = (
            f"set data.max_prompt_tokens={context - answer}, or a smaller rollout.max_new_tokens"
            if answer < context
            else f"set rollout.max_new_tokens well below {context}"
        )
        found.append(
            f"data.max_prompt_tokens = {prompt} leaves no room for an answer of {answer} tokens in the"
            f" {context} positions of the {key} ({facts.path}); {way_out}"
        )
    if context is not None and config.text is not None and config.text.block_tokens > context:
        found.append(
            f"text.block_tokens = {config.text.block_tokens} is more than the {context} positions of the"
            f" {key} ({facts.path}); try {context}"
        )
    if in_engine is None:
        in_engine = needs_rollouts(config) and (key == "student" or mixes(config))
    if in_engine and not config.cluster.rollout_gpus and facts.head_dim not in CPU_HEAD_DIMS:
        found.append(
            f"{key}.path = {facts.path} has attention heads of size {facts.head_dim}, and vLLM on CPUs takes"
            f" {', '.join(map(str, CPU_HEAD_DIMS))}; use another model, or GPUs (cluster.rollout_gpus=1)"
        )
    return found


def end_faults(config: RunConfig, vocabulary: int | None) -> list[str]:
    """Whether an answer can end before its limit."""
    ends = end_of_sequence_ids(config.student.path)
    if not needs_rollouts(config) or vocabulary is None or any(end < vocabulary for end in ends):
        return []
    named = f"only {ends}, which are outside the {vocabulary} words" if ends else "no end-of-sequence token"
    return [
        f"student.path = {config.student.path} names {named}, so every answer would run to"
        " rollout.max_new_tokens; set eos_token_id in its generation_config.json"
    ]


def end_notes(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Whether given answers end as sampled ones do."""
    ends, given = end_of_sequence_ids(config.student.path), tokenizer.eos_token_id
    if not ends or given is None or given in ends:
        return []
    return [
        f"given answers end with token {given} (the tokenizer's), sampled ones with {ends} (the generation"
        " config's): what is learned from the first does not end the second"
    ]


def cache_faults(config: RunConfig, student: ModelFacts, teacher: ModelFacts | None) -> list[str]:
    """Whether an engine's cache holds at least one prompt with its answer."""
    room, need = cache_tokens(config, student, teacher), max_tokens(config)
    if not needs_rollouts(config) or room >= need:
        return []
    given = config.rollout.kv_cache_gib
    way_out = f"try {1.1 * given * need / room:.2g}" if room else f"try {2 * given:g} or more"
    return [
        f"rollout.kv_cache_gib = {given:g} holds the keys and values of {room} tokens, and one prompt with its"
        f" answer takes {need}; {way_out}"
    ]


def resource_faults(config: RunConfig, needed: Sequence[Bundle] | None = None) -> list[str]:
    """Whether all actors together reserve no more than is declared, as far as that is known.

    `needed` are the actors; None = those of a run.
    """
    have = declared(config.cluster)
    if have is None:
        return []
    needed = bundles(config, os.cpu_count() or 1) if needed is None else needed
    need = {
        "CPU": sum(p.cpus for p in needed) + config.cluster.writer_cpus,
        "GPU": sum(p.gpus for p in needed),
    }
    found = []
    for kind, amount in need.items():
        if amount > have.get(kind, 0.0) + 1e-6:
            settings = ", ".join(f"cluster.{p.role}_{kind.lower()}s" for p in _one_each(needed))
            found.append(
                f"the run reserves {amount:g} {kind}s ({_terms(needed, kind, config)}), and"
                f" {where(config.cluster)} declares {have.get(kind, 0.0):g}; lower {settings},"
                " or use fewer actors or ranks"
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
    """The machine or cluster that a run will stand on, in words."""
    if ray.is_initialized():
        return "the Ray cluster that this process is connected to"
    if address := cluster.address or os.environ.get("RAY_ADDRESS"):
        return f"the Ray cluster at {address}"
    return "a local Ray cluster"


def _one_each(needed: Sequence[Bundle]) -> list[Bundle]:
    return list({bundle.role: bundle for bundle in needed}.values())


def _terms(needed: Sequence[Bundle], kind: str, config: RunConfig) -> str:
    terms = []
    for one in _one_each(needed):
        count = sum(bundle.role == one.role for bundle in needed)
        terms.append(f"{one.role} {count} x {one.cpus if kind == 'CPU' else one.gpus:g}")
    if kind == "CPU":
        terms.append(f"writer {config.cluster.writer_cpus:g}")
    return ", ".join(terms)

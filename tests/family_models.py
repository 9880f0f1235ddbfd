"""What a tiny model of each family is made of: a student, and a teacher that differs in all it may."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minillm_ray.tests.tiny_models import tiny_model
from transformers import AutoConfig

Settings = Mapping[str, Any]
WINDOW, OTHER_WINDOW = 16, 24
"""Shorter than most prompts of the tests, so that a window that is lost shows."""


@dataclass(frozen=True)
class Family:
    """A student's settings, and what its teacher has instead."""

    type: str
    settings: Settings = field(default_factory=dict)
    teacher: Settings = field(default_factory=dict)


def rope(theta: float, **more: Any) -> Settings:
    """Settings of rotary positions."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **more}}


def experts(number: int, of_each: int, **more: Any) -> Settings:
    """Settings of a mixture of experts, by the names that most families have."""
    return {"num_experts": number, "num_experts_per_tok": of_each, "moe_intermediate_size": 64, **more}


LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
GPT_NAMES = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 256}
WIDER_GPT = {"n_embd": 96, "n_layer": 3, "n_head": 3}

FAMILIES: dict[str, Family] = {
    "llama3": Family("llama", rope(5e3, **LLAMA_3, original_max_position_embeddings=32), rope(2e4)),
    "qwen2": Family("qwen2", rope(1e4), rope(100.0)),
    "qwen3": Family("qwen3", rope(1e4), rope(100.0)),
    "qwen3_moe": Family(
        "qwen3_moe",
        {**experts(4, 2, norm_topk_prob=True), **rope(1e4)},
        {**experts(6, 3, norm_topk_prob=True), **rope(100.0)},
    ),
    "mistral": Family("mistral", {"sliding_window": WINDOW}, {"sliding_window": OTHER_WINDOW, **rope(100.0)}),
    "gemma2": Family(
        "gemma2",
        {"sliding_window": WINDOW, "attn_logit_softcapping": 0.5, "query_pre_attn_scalar": 32},
        {"sliding_window": OTHER_WINDOW, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
    ),
    "gemma3": Family(
        "gemma3_text",
        {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
        {"sliding_window": OTHER_WINDOW, "layer_types": ["full_attention", *["sliding_attention"] * 2]},
    ),
    "phi3": Family("phi3", {"sliding_window": None}, {"sliding_window": None, **rope(100.0)}),
    "smollm3": Family("smollm3", {"no_rope_layers": [1, 0]}, {"no_rope_layers": [0, 1, 1], **rope(100.0)}),
    "olmo2": Family("olmo2", {}, rope(100.0)),
    "gpt_neox": Family("gpt_neox", {}, {"use_parallel_residual": False}),
    "gpt2": Family("gpt2"),
    "opt": Family("opt"),
    "gptj": Family("gptj", {**GPT_NAMES, "rotary_dim": 16}, {**WIDER_GPT, "rotary_dim": 32}),
    "granite": Family(
        "granite",
        {"logits_scaling": 4.0, "attention_multiplier": 0.3, "embedding_multiplier": 2.0},
        {"logits_scaling": 2.0, "residual_multiplier": 0.5, **rope(100.0)},
    ),
    "stablelm": Family(
        "stablelm",
        {"use_qkv_bias": True},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}},
    ),
    "falcon": Family(
        "falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 1, "bias": False},
        {"new_decoder_architecture": False, "multi_query": True, "parallel_attn": True, "bias": True},
    ),
    # Beside those that a run is promised for, what else was tried.
    "phi": Family("phi"),
    "glm": Family("glm"),
    "glm4": Family("glm4"),
    "starcoder2": Family("starcoder2"),
    "arcee": Family("arcee"),
    "gemma": Family("gemma"),
    "cohere": Family("cohere"),
    "olmo": Family("olmo"),
    "olmo3": Family(
        "olmo3",
        {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
        {"sliding_window": OTHER_WINDOW, "layer_types": ["full_attention", *["sliding_attention"] * 2]},
    ),
    "mixtral": Family(
        "mixtral", {"num_local_experts": 4}, {"num_local_experts": 6, "num_experts_per_tok": 3}
    ),
    "olmoe": Family("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}, {"num_experts": 6}),
    "qwen2_moe": Family(
        "qwen2_moe",
        experts(4, 2, shared_expert_intermediate_size=64, norm_topk_prob=True),
        experts(6, 3, shared_expert_intermediate_size=64),
    ),
    "gpt_oss": Family(
        "gpt_oss",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        {
            "num_local_experts": 6,
            "sliding_window": OTHER_WINDOW,
            # vLLM's layers take turns, whatever is written here
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "bloom": Family(
        "bloom",
        {"n_layer": 2, "n_head": 2, "hidden_size": 64},
        {"n_layer": 3, "n_head": 3, "hidden_size": 96},
    ),
    "gpt_bigcode": Family("gpt_bigcode", GPT_NAMES, WIDER_GPT),
}
UNTIED = ("gptj", "phi", "olmoe", "gpt_oss")
"""Families whose head is never the embedding."""
TIED = ("cohere", "gemma", "gemma2", "gemma3", "bloom", "falcon")
"""Families whose head always is."""
_AS_THEY_COME = (
    "biogpt cohere2 ernie4_5 exaone4 exaone_moe gemma4_text granite_swa granitemoe granitemoe_swa"
    " granitemoeshared helium hunyuan_v1_dense hyperclovax jais2 ministral ministral3 nanochat nemotron"
    " persimmon seed_oss vaultgemma"
)
"""Families whose student and teacher differ in size alone."""
PROMISED = tuple(FAMILIES)[: tuple(FAMILIES).index("falcon") + 1]


FEW_EXPERTS = {
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    "moe_intermediate_size": 64,
}
"""For families that nobody has described here."""


AS_THEY_COME = _AS_THEY_COME.split()
FAMILIES |= {
    # Granite's default of 1 makes scores so large that float32's noise is felt
    name: Family(name, {"attention_multiplier": 0.2} if "granite" in name else {})
    for name in AS_THEY_COME
}


def make(name: str, folder: Path, *, teacher: bool = False) -> Path:
    """The student of a family, or its teacher: wider, deeper, with another number of heads."""
    family = FAMILIES.get(name) or Family(name)
    settings = {**family.settings, **family.teacher} if teacher else family.settings
    size: dict[str, Any] = {"width": 96, "layers": 3, "seed": 2} if teacher else {"width": 64, "seed": 1}
    # one is tied, the other is not, as far as a family lets them
    tied = name in TIED or (teacher and name not in UNTIED)
    if name not in FAMILIES or name in AS_THEY_COME:
        plain = AutoConfig.for_model(name).to_dict()
        tied = bool(plain.get("tie_word_embeddings"))
        settings = {key: value for key, value in FEW_EXPERTS.items() if plain.get(key)} | dict(settings)
    return tiny_model(family.type, folder, settings=settings, tied=tied, **size)

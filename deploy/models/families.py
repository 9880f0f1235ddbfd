"""Which families of models can play which part, and for those that cannot the reason.

`benchmarks/families.py` measures them. A family that vLLM runs through transformers may come out as another
without any error, so an engine takes none that was not measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

WAY_OUT = "use a model of another family (docs/reference/families.md has those that were tried)"

_ENCODERS = """
    bart bert bert-generation big_bird bigbird_pegasus blenderbot blenderbot-small camembert
    data2vec-text electra ernie marian mbart megatron-bert mvp pegasus plbart prophetnet reformer
    rembert roberta roberta-prelayernorm roc_bert roformer xlm xlm-roberta xlm-roberta-xl xlnet xmod
"""
_OTHER_INPUTS = """
    aria_text emu3 fuyu gemma3 gemma3n gemma4 gemma4_unified git got_ocr2 mllama moshi musicgen
    musicgen_melody phi4_multimodal qwen3_5 qwen3_5_moe qwen4_exp trocr whisper
"""
_WITH_STATE = """
    bamba falcon_h1 falcon_mamba granitemoehybrid jamba kimi_linear lfm2 lfm2_moe mamba mamba2 minimax
    nemotron_h olmo_hybrid qwen3_5_moe_text qwen3_5_text qwen3_next qwen4_exp_text recurrent_gemma rwkv
    xlstm zamba zamba2 zaya
"""
_UNKNOWN_TO_VLLM = "codegen gpt_neo mpt openai-gpt xglm"
_TRIED = """
    arcee biogpt cohere cohere2 ernie4_5 exaone4 exaone_moe falcon gemma gemma2 gemma3_text gemma4_text
    glm glm4 gpt2 gpt_bigcode gpt_neox gpt_oss gptj granite granite_swa granitemoe granitemoe_swa
    granitemoeshared helium hunyuan_v1_dense hyperclovax jais2 llama ministral ministral3 mistral
    mixtral nanochat nemotron olmo olmo2 olmo3 olmoe opt persimmon phi phi3 qwen2 qwen2_moe qwen3
    qwen3_moe seed_oss smollm3 stablelm starcoder2 vaultgemma
"""
CARRIES_STATE = (
    "has layers that carry a state from token to token; vLLM keeps that in a cache of another kind, which"
    " student and teacher cannot share"
)
COMPRESSED = (
    "keeps keys and values compressed (multi-head latent attention), and vLLM pages those in blocks of"
    " another size than a second network's"
)
NO_USE: dict[str, str] = {
    **dict.fromkeys(
        _ENCODERS.split(),
        "is an encoder, or half of a pair of encoder and decoder, and was not made to go on with a text",
    ),
    **dict.fromkeys(
        _OTHER_INPUTS.split(), "is made for pictures or sounds beside text, and a run has text alone"
    ),
    **dict.fromkeys(
        ("llama4", "llama4_text"),
        "keeps what lies below its output layer where learner and scorer do not find it",
    ),
}
"""Families that no part of a run takes."""
NOT_IN_ENGINE: dict[str, str] = {
    **dict.fromkeys(_WITH_STATE.split(), CARRIES_STATE),
    **dict.fromkeys(_UNKNOWN_TO_VLLM.split(), "is of a family that vLLM 0.32 does not run"),
    **dict.fromkeys(
        ("diffllama", "doge"), "has attention of its own, which vLLM replaces with another without a word"
    ),
    "ctrl": "has weights that in vLLM do not follow weight updates",
    **dict.fromkeys(
        ("flex_olmo", "hunyuan_v1_moe", "phimoe"),
        "has experts, and is run by vLLM through transformers, where their names are those of one network",
    ),
    "apertus": "has an activation of its own, whose numbers in vLLM do not follow weight updates",
    "bloom": "has biases in place of positions, which vLLM adds in fewer digits on CPUs",
    "ernie4_5_moe": "has biases of experts, which in vLLM do not follow weight updates",
}
"""Families that no engine takes, though the teacher server or the learner may."""
TRIED = frozenset(_TRIED.split())
"""Families whose numbers in vLLM are those of transformers, by what `benchmarks/families.py` measured."""
KNOWN_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
SETTINGS = (
    ("stablelm", "use_parallel_residual", "which vLLM's StableLM does not have"),
    ("stablelm", "qk_layernorm", "which vLLM's StableLM does not have"),
    ("falcon", "alibi", "and vLLM adds such biases in fewer digits on CPUs"),
)
"""Family, a setting of it, and why no engine takes models that have it."""


def refusal(config: PretrainedConfig) -> str | None:
    """Why no part of a run takes a model of this config, as the rest of a sentence; None if some do."""
    return NO_USE.get(config.model_type)


def engine_refusal(config: PretrainedConfig) -> str | None:
    """Why no engine takes a model of this config, as the rest of a sentence; None if one may."""
    if (reason := NOT_IN_ENGINE.get(config.model_type)) is not None:
        return reason
    text: Any = config.get_text_config()
    if getattr(text, "kv_lora_rank", None):
        return COMPRESSED
    if any(kind not in KNOWN_LAYERS for kind in getattr(text, "layer_types", None) or ()):
        return CARRIES_STATE
    for family, setting, reason in SETTINGS:
        if config.model_type == family and getattr(text, setting, False):
            return f"has {setting} = {getattr(text, setting)}, {reason}"
    if config.model_type not in TRIED:
        return f"is of a family ({config.model_type}) whose numbers in vLLM nobody has compared with its own"
    return None


def exact_context(config: PretrainedConfig) -> int | None:
    """Tokens up to which positions are the same for every length of a text; None where they always are.

    Beyond them, transformers turns by how long a batch is and vLLM by how long a text may become.
    """
    text: Any = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = rope.values() if rope and all(isinstance(one, dict) for one in rope.values()) else [rope]
    found = [
        one.get("original_max_position_embeddings")
        or getattr(text, "original_max_position_embeddings", None)
        or text.max_position_embeddings
        for one in kinds
        if one.get("rope_type") in ("longrope", "dynamic")
    ]
    return min(found, default=None)

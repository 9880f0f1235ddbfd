"""Tiny models of a dozen families, all their weights away from what they begin with."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SMALL = {
    "vocab_size": 120,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 64, "rotary_dim": 16}
FAMILIES = {
    "gpt2": GPT,
    "gptj": GPT,
    "gpt_neox": {},
    "llama": {},
    "mistral": {"num_key_value_heads": 1},
    "qwen2": {"num_key_value_heads": 1},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    "phi": {},
    "gemma2": {"head_dim": 32, "num_key_value_heads": 1, "final_logit_softcapping": 1.5},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0},
    "olmo2": {},
}


def tiny(family: str, **changes) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **SMALL, **{**FAMILIES.get(family, {}), **changes})
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()

"""Tiny random models of every family that the project knows, made in a second, for tests."""

from __future__ import annotations

import string
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

FAMILIES = ("gpt2", "llama", "qwen2", "opt", "mistral")
HEAD_DIM = 32
"""The smallest that vLLM's CPU attention takes."""
POSITIONS = 256
SPECIAL = ("<pad>", "<eos>", "<unk>")
BYTE_SYMBOLS = {" ": "Ġ", "\n": "Ċ"}
"""How byte-level BPE writes the characters that cannot stand for themselves."""
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ {'system': 'S:', 'user': 'Q:', 'assistant': 'A:'}[message['role']] }} {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
)


def tiny_model(
    family: str,
    folder: Path,
    *,
    seed: int = 0,
    width: int = 64,
    layers: int = 2,
    vocabulary: int = 128,
    tied: bool = True,
    padding: int = 0,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """A random model and its tokenizer, saved in `folder` as a Hugging Face folder.

    `vocabulary` is the size of the tokenizer; the model's head has `padding` rows more. `width` is a
    multiple of 32. `settings` are added to the config. Weights are large enough that distributions are far
    from uniform, and no bias or norm is left at 0 or 1. All models of the same `vocabulary` share their
    tokenizer.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = tiny_config(
            family, width=width, layers=layers, vocabulary=vocabulary + padding, tied=tied, settings=settings
        )
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    model.generation_config.eos_token_id = SPECIAL.index("<eos>")
    model.generation_config.pad_token_id = SPECIAL.index("<pad>")
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tiny_tokenizer(vocabulary).save_pretrained(folder)
    return folder


def tiny_config(
    family: str,
    *,
    width: int,
    layers: int,
    vocabulary: int,
    tied: bool,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> PretrainedConfig:
    """The settings of a tiny model; the families with grouped heads get half as many of them."""
    heads = width // HEAD_DIM
    shared = {
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "initializer_range": 0.15,
        "init_std": 0.15,
        "bos_token_id": None,
        "eos_token_id": SPECIAL.index("<eos>"),
        "pad_token_id": SPECIAL.index("<pad>"),
    }
    if family == "gpt2":
        sizes = {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": POSITIONS}
    else:
        sizes = {
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "max_position_embeddings": POSITIONS,
        }
        if family == "opt":
            sizes |= {"word_embed_proj_dim": width, "ffn_dim": 2 * width}
        else:
            sizes |= {"num_key_value_heads": max(1, heads // 2), "intermediate_size": 2 * width}
    if family not in FAMILIES:
        plain = AutoConfig.for_model(family)
        known = {*plain.to_dict(), *plain.attribute_map}
        # A setting that a family does not have would be kept, and believed by vLLM.
        sizes = {n: value for n, value in (sizes | {"head_dim": HEAD_DIM}).items() if n in known}
    return AutoConfig.for_model(family, **{**shared, **sizes, **settings})


def tiny_tokenizer(vocabulary: int = 128) -> PreTrainedTokenizerFast:
    """One token for each printable character, as many as fit; the rest are spare words.

    It is a byte-level BPE without merges, since AutoTokenizer rebuilds any tokenizer beside a Qwen2
    model as one.
    """
    characters = string.ascii_letters + string.digits + string.punctuation + " \n"
    words = [*SPECIAL, *(BYTE_SYMBOLS.get(c, c) for c in characters)][:vocabulary]
    words += [f"<spare{n}>" for n in range(vocabulary - len(words))]
    core = Tokenizer(models.BPE({word: n for n, word in enumerate(words)}, [], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=POSITIONS,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer

"""The tokenizer of a model; if it cannot be read, the file and the field that are to blame."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.config.run import ModelConfig
from ...common.errors import Fault, ModelError
from .config_file import BROKEN, first_line, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILE = "tokenizer.json"
OTHERS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
EMPTY: Mapping[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": None,
    "model": {"type": "BPE", "vocab": {}, "merges": []},
}
"""A tokenizer.json that can be read; parts of another are tried in it one by one."""


def load_tokenizer(model: ModelConfig, key: str) -> PreTrainedTokenizerBase:
    """The tokenizer of the model that the setting `key` names. Raises ModelError if there is none."""
    from transformers import AutoTokenizer

    way_out = "save the tokenizer beside the model"
    try:
        found = AutoTokenizer.from_pretrained(model.path, revision=model.revision, trust_remote_code=False)
    except Exception as error:
        # What tokenizers raises is Exception itself, and nothing narrower.
        if type(error) is not Exception and not isinstance(error, BROKEN):
            raise
        if blamed := broken_file(Path(model.path)):
            way_out = "save the tokenizer again, or download the file again"
        reason = f"has no tokenizer that can be read: {blamed or first_line(error)}"
        raise ModelError(Fault(key, model.path, reason, way_out)) from error
    limit = found.model_max_length
    if isinstance(limit, bool) or not isinstance(limit, int | float):
        reason = f"has a tokenizer_config.json that cannot be used: model_max_length = {json.dumps(limit)}"
        raise ModelError(Fault(key, model.path, reason, "make it a number"))
    # Where its files are missing, transformers 5.19 makes an empty one for some families.
    if not set(found.get_vocab()) - set(found.all_special_tokens):
        raise ModelError(Fault(key, model.path, "has no tokenizer files", way_out))
    return found


def broken_file(folder: Path) -> str | None:
    """Which file of a tokenizer is broken, where and how; None if none is, or that cannot be told."""
    values = None
    for name in (FILE, *OTHERS):
        if not (folder / name).is_file():
            continue
        try:
            read = read_json(folder / name)
        except ValueError as error:
            return str(error)
        if name == FILE:
            values = read
        elif "AutoTokenizer" in (read.get("auto_map") or ()):
            return f"{name} asks for code of its own (auto_map), which is never run"
    return _broken_part(values) if values is not None else None


def _broken_part(values: Mapping[str, Any]) -> str | None:
    """The field of a tokenizer.json that tokenizers does not read."""
    for name, plain in EMPTY.items():
        said = _refused({**EMPTY, name: values.get(name, plain)})
        if said is None:
            continue
        part = values[name]
        kind = f" of type {json.dumps(part.get('type'))}" if isinstance(part, dict) else ""
        if name == "model" and isinstance(part, dict) and (entry := _entry(part)):
            return f"{FILE}: {entry}"
        return f"{FILE}: {name}{kind}: {said}"
    return None


def _refused(values: Mapping[str, Any]) -> str | None:
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_str(json.dumps(values))
    except Exception as error:  # see load_tokenizer
        return first_line(error)
    return None


def _entry(part: Mapping[str, Any]) -> str | None:
    """The first word whose id is no number, in a vocabulary that leads from words to ids."""
    words = part.get("vocab")
    if not isinstance(words, dict):
        return None
    odd = next((word for word, id in words.items() if type(id) is not int or id < 0), None)
    return None if odd is None else f"model.vocab[{json.dumps(odd)}] = {json.dumps(words[odd])} is no id"

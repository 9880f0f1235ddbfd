"""The config.json of a model, read strictly: what is wrong with it is told by file and field."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import StrictDataclassError

from ...actors.checkpoint_files import WHOLE
from ...common.config.run import ModelConfig
from ...common.errors import Fault, ModelError
from ...common.process import collector_paused
from ...common.transformers_compat import causal_lm_classes
from .checkpoint import ADAPTER, adapter_fault

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

FILE = "config.json"
NEEDED = (
    *("vocab_size", "hidden_size", "n_embd", "num_hidden_layers", "n_layer"),
    *("num_attention_heads", "n_head"),
)
"""Fields that count something, by the names that families give them; each is at least 1."""
COUNTS = (
    *NEEDED,
    *("num_key_value_heads", "head_dim", "intermediate_size", "ffn_dim", "n_inner"),
    *("max_position_embeddings", "n_positions"),
)
EXACT_METHODS = ("fp8",)
"""Ways of quantising that transformers reads exactly."""
BROKEN = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError),
    *(OSError, RuntimeError, TypeError, ValueError, StrictDataclassError),
)
"""What libraries raise for a file with something unexpected in it."""
AboutModel = Callable[[str, str], Fault]


def read_config(model: ModelConfig, key: str, *, quantised: bool = False) -> PretrainedConfig:
    """The settings of a causal language model, quantised only where that is allowed.

    Raises ModelError with all that is wrong with them.
    """
    from transformers import AutoConfig

    about = partial(Fault, key, model.path)
    values = _values(model, key, about)
    found = [*_type_faults(values, about), *_count_faults(values, about)]
    if elsewhere := values.get("transformers_weights"):
        said = f"transformers_weights = {json.dumps(elsewhere)}, which vLLM does not know of"
        found.append(about(_in_file(said), f"name that file {WHOLE} and take the field out"))
    if found:
        raise ModelError(*found)
    try:
        config = AutoConfig.from_pretrained(model.path, revision=model.revision, trust_remote_code=False)
    except BROKEN as error:
        raise ModelError(_broken(values, error, about)) from error
    named, names = config.architectures or [], causal_lm_classes(config)
    if not names or config.is_encoder_decoder or (named and not names.intersection(named)):
        reason = f"is {', '.join(named) or config.model_type}, not a causal language model"
        raise ModelError(about(reason, "give one that AutoModelForCausalLM opens"))
    if found := _quantised_faults(values, quantised, about):
        raise ModelError(*found)
    return config


def empty_network(config: PretrainedConfig, model: ModelConfig, key: str) -> PreTrainedModel:
    """The model of a config, with weights that take no memory. Raises ModelError if it cannot be made."""
    try:
        with collector_paused():
            import torch
            from transformers import AutoModelForCausalLM

            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except BROKEN as error:
        about = partial(Fault, key, model.path)
        raise ModelError(_broken(config.to_dict(), error, about)) from error


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError that says what is wrong with the file."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file.name} is no JSON ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file.name} holds no fields but {type(values).__name__}")
    return values


def _values(model: ModelConfig, key: str, about: AboutModel) -> dict[str, Any]:
    """The file as it stands. Raises ModelError if there is none."""
    from transformers import PretrainedConfig

    folder = Path(model.path)
    if folder.is_dir():
        if not (folder / FILE).is_file():
            if (folder / ADAPTER).is_file():
                raise ModelError(adapter_fault(model, key))
            raise ModelError(about(f"holds no {FILE}", "give a folder saved with save_pretrained"))
        try:
            return read_json(folder / FILE)
        except ValueError as error:
            raise ModelError(about(f"has a broken file: {error}", f"mend {FILE}")) from error
    try:
        return PretrainedConfig.get_config_dict(model.path, revision=model.revision)[0]
    except BROKEN as error:
        if not folder.exists() and (folder.is_absolute() or model.path.startswith(".")):
            raise ModelError(_no_folder(folder, key, model.path)) from error
        reason = f"is not a folder here, and the hub does not give it: {first_line(error)}"
        way_out = "give a local folder or a public name (models that bring their own code are refused)"
        raise ModelError(about(reason, way_out)) from error


def _no_folder(folder: Path, key: str, path: str) -> Fault:
    if not folder.parent.is_dir():
        way_out = f"{folder.parent} does not exist either"
    else:
        close = difflib.get_close_matches(folder.name, [p.name for p in folder.parent.iterdir()], 1)
        way_out = f"did you mean {folder.parent / close[0]}?" if close else "give a folder that does"
    return Fault(key, path, "is a folder that does not exist", way_out)


def _type_faults(values: Mapping[str, Any], about: AboutModel) -> list[Fault]:
    from transformers import CONFIG_MAPPING

    family = values.get("model_type")
    if isinstance(family, str) and family in CONFIG_MAPPING:
        return []
    if "auto_map" in values:
        reason = f"brings code of its own (auto_map in its {FILE}), which is never run"
        return [about(reason, "give a model of a family that transformers knows by itself")]
    close = difflib.get_close_matches(str(family), CONFIG_MAPPING, 1)
    way_out = f"did you mean {json.dumps(close[0])}?" if close else "name a family that transformers knows"
    said = f"model_type = {json.dumps(family)}, which transformers does not know"
    return [about(_in_file(said if "model_type" in values else "model_type is missing"), way_out)]


def _count_faults(values: Mapping[str, Any], about: AboutModel) -> list[Fault]:
    found = []
    for name in COUNTS:
        value, least = values.get(name), int(name in NEEDED)
        if value is None or isinstance(value, list | dict):  # one for each layer, in some families
            continue
        if type(value) is not int or value < least:
            reason = _in_file(f"{name} = {json.dumps(value)}, which is no whole number of at least {least}")
            found.append(about(reason, f"mend {name} in {FILE}"))
    return found or _head_faults(values, about)


def _head_faults(values: Mapping[str, Any], about: AboutModel) -> list[Fault]:
    """Whether heads divide what they share."""
    heads_name, heads = _first(values, "num_attention_heads", "n_head")
    width_name, width = _first(values, "hidden_size", "n_embd")
    shared = values.get("num_key_value_heads")
    found = []
    has_own_size = any(name.endswith("head_dim") and value for name, value in values.items())
    if heads and width and not has_own_size and width % heads:
        reason = _in_file(f"{heads_name} = {heads}, which does not divide {width_name} = {width}")
        found.append(about(reason, f"mend {heads_name} or {width_name} in {FILE}"))
    if heads and type(shared) is int and shared and heads % shared:
        reason = _in_file(f"num_key_value_heads = {shared}, which does not divide {heads_name} = {heads}")
        found.append(about(reason, f"mend num_key_value_heads or {heads_name} in {FILE}"))
    return found


def _first(values: Mapping[str, Any], *names: str) -> tuple[str, int | None]:
    return next(((name, values[name]) for name in names if type(values.get(name)) is int), (names[0], None))


def _quantised_faults(values: Mapping[str, Any], allowed: bool, about: AboutModel) -> list[Fault]:
    said = values.get("quantization_config") or values.get("compression_config")
    if not said:
        return []
    method = said.get("quant_method") if isinstance(said, dict) else said
    if allowed and method in EXACT_METHODS:
        return []
    reason = f"is quantised (quant_method = {json.dumps(method)}), and here its weights are read as they are"
    return [about(reason, "give the model in bfloat16 or float32, as it was before")]


def is_quantised(config: PretrainedConfig) -> bool:
    """Whether it says how to read weights that are no plain numbers."""
    return bool(getattr(config, "quantization_config", None))


def _broken(values: Mapping[str, Any], error: BaseException, about: AboutModel) -> Fault:
    """A fault of what a library says, with the fields that it speaks of."""
    said = " ".join(str(error).split())[:300]
    fields = dict(_fields(values))
    guesses: tuple[Callable[[str], bool], ...] = (
        lambda name: _is_word(_last(name), said),
        lambda name: _is_word(_last(name).replace("num_", "number of ").replace("_", " "), said),
        lambda name: isinstance(fields[name], str) and bool(fields[name]) and _is_word(fields[name], said),
        lambda name: isinstance(fields[name], str) and _is_number(fields[name]),
    )
    named = next((found for guess in guesses if (found := [name for name in fields if guess(name)])), [])[:2]
    told = ", ".join(f"{name} = {json.dumps(fields[name], default=str)}" for name in named)
    way_out = f"mend {' or '.join(named) or 'it'} in {FILE}, or save the model again"
    return about(_in_file(f"{told}: {said}" if told else said), way_out)


def _fields(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _fields(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text.strip(), re.IGNORECASE) is not None


def _is_word(word: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None


def _in_file(what: str) -> str:
    return f"has a {FILE} that cannot be used: {what}"


def first_line(error: BaseException) -> str:
    """What an error says first."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

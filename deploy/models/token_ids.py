"""Ids that a tokenizer, its template or the generation settings produce, held against a model's rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.config.run import ModelConfig
from ...common.errors import Fault, InputError, ModelError, collect_error, merge_errors
from .checkpoint import listed
from .config_file import BROKEN, first_line, read_json
from .config_file import FILE as CONFIG

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

FILE = "generation_config.json"
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
SETTINGS = (*IDS, "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id")
MARKS = ("bos_token", "eos_token", "pad_token", "unk_token")
CHAT = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
"""What a template is tried on."""


def tokenizer_faults(
    key: str,
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    rows: int,
    owner: str = "its model",
    *,
    written: bool = False,
) -> list[Fault]:
    """Whether all that a tokenizer makes of texts and chats has a row.

    Control tokens count only where they are used, since some models have no rows for those that stand for
    pictures; all count if one that is `written` out in a text is read as one, and not as plain text.
    """
    found = {id: token for token, id in tokenizer.get_vocab().items() if id >= rows}
    if not found:
        return []
    control = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    control.update(tokenizer.all_special_ids)
    used = {getattr(tokenizer, f"{name}_id", None) for name in MARKS}
    used.update(tokenizer("a")["input_ids"], _template_ids(tokenizer))
    ids = sorted(id for id in found if written or id not in control or id in used)
    if not ids:
        return []
    shown = listed([f"{id} ({found[id]!r})" for id in ids])
    reason = f"has a tokenizer that produces ids beyond the {rows} rows of {owner}: {shown}"
    way_out = "give the model rows for them (resize_token_embeddings), or take the tokens out"
    return [Fault(key, path, reason, way_out)]


def _template_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        return []
    try:
        ids: Any = tokenizer.apply_chat_template(list(CHAT), tokenize=True, return_dict=False)
        return ids
    except (TemplateError, TypeError, ValueError):  # told where data is rendered
        return []


def read_generation(model: ModelConfig, key: str) -> GenerationConfig | None:
    """The generation settings; None if the model has none. Raises ModelError if they cannot be read."""
    from transformers import GenerationConfig

    file = Path(model.path) / FILE
    if Path(model.path).is_dir() and not file.is_file():
        return None
    try:
        if file.is_file():
            read_json(file)
        return GenerationConfig.from_pretrained(model.path, revision=model.revision or "main")
    except BROKEN as error:
        if isinstance(error, OSError) and not file.is_file():  # of a model on the hub
            return None
        reason = f"has a {FILE} that cannot be used: {first_line(error)}"
        raise ModelError(Fault(key, model.path, reason, f"mend {FILE}")) from error


def check_ids(model: ModelConfig, key: str, config: PretrainedConfig) -> None:
    """Raises ModelError for ids in the config or the generation settings that are none, or have no row."""
    rows = config.get_text_config().vocab_size
    about = partial(Fault, key, model.path)
    found: list[InputError] = []
    settings = collect_error(found, read_generation, model, key)
    faults = [*_id_faults(config, CONFIG, IDS, rows, about)]
    if settings is not None:
        faults += _id_faults(settings, FILE, SETTINGS, rows, about)
    if faults:
        found.append(ModelError(*faults))
    if found:
        raise merge_errors(found)


def _id_faults(
    settings: Any, file: str, names: Iterable[str], rows: int, about: Callable[[str, str], Fault]
) -> Iterator[Fault]:
    for name in names:
        value = getattr(settings, name, None)
        several = value if isinstance(value, list | tuple) else [] if value is None else [value]
        if not all(type(id) is int for id in several):
            said, way_out = f"{name} = {value!r}, which is no id", "make it a number, or a list of numbers"
        elif too_high := [id for id in several if id >= rows]:
            said = f"{name} = {', '.join(map(str, too_high))}, and its model has {rows} rows"
            way_out = f"give an id below {rows}, or take it out of {file}"
        else:
            continue
        yield about(f"has a {file} that cannot be used: {said}", way_out)


def unsaved_settings(model: ModelConfig) -> list[str]:
    """Names of generation settings for which transformers refuses to save them."""
    settings = read_generation(model, "")
    try:
        if settings is not None:
            settings.validate(strict=True)
    except ValueError as error:
        return re.findall(r"^- `(\w+)`", str(error), re.MULTILINE) or [first_line(error)]
    return []

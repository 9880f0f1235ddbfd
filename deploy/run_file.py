"""Run files: YAML and dotted overrides in, one checked configuration out, or all faults at once.

Paths of models and data in a run file are taken from the file's own folder where they exist there, else from
the folder one stands in, else they are names on the hub. Those in overrides start where one stands, as does
`out`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ..common.config import RunConfig
from ..common.errors import ConfigError

PATHS = (
    *("student.path", "teacher.path", "text.path"),
    *("data.train.path", "data.validation.path", "data.heldout.path"),
)
"""Settings that may name a file or folder."""
CONFIG_FILE = "config.yaml"
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
"""How a limit of pydantic is read aloud."""
Keys = tuple[str | int, ...]
Values = dict[str, Any]
"""Settings as a run file gives them, not yet checked."""
Change = Callable[[Values, list[str]], Values]
"""From settings to settings; what is wrong goes into the list."""


def as_written(values: Values, faults: list[str]) -> Values:
    """A run file as it stands."""
    return values


def load_run(path: Path | str, overrides: Sequence[str] = (), change: Change = as_written) -> RunConfig:
    """Read a run file; each override `key.sub=value` (value in YAML) replaces a setting, or null, or a list.

    `change` may alter the settings before they are checked. Raises ConfigError with every fault, each with
    its key, its value and the way out.
    """
    file = Path(path)
    source = f"run file {file}"
    faults: list[str] = []
    tree = OmegaConf.merge(_read(file, source), _parse(overrides, faults))
    try:
        values: Any = OmegaConf.to_container(tree, resolve=True)
    except OmegaConfBaseException as fault:
        raise ConfigError(*faults, _one_line(fault), source=source) from fault
    config = validated(change(values, faults), faults)
    if faults or config is None:
        raise ConfigError(*faults, source=source)
    return config


def beneath(low: Mapping[str, Any], high: Mapping[str, Any]) -> Values:
    """The settings of `high`, and those of `low` that it does not name."""
    merged = dict(low)
    for key, value in high.items():
        under = merged.get(key)
        if isinstance(under, Mapping) and isinstance(value, Mapping):
            value = beneath(under, value)
        merged[key] = value
    return merged


def save_resolved(config: RunConfig, folder: Path) -> Path:
    """Write every setting, as resolved, into a run file in `folder` that gives the same run."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / CONFIG_FILE
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)
    file.write_text(text, encoding="utf-8")
    return file


def _read(file: Path, source: str) -> DictConfig:
    try:
        tree = OmegaConf.load(file)
    except FileNotFoundError as fault:
        near = file.parent.glob("*.yaml") if file.parent.is_dir() else ()
        close = difflib.get_close_matches(file.name, [p.name for p in near], 1)
        hint = f"did you mean {file.parent / close[0]}?" if close else "give the path of a YAML file"
        raise ConfigError(f"there is no such file; {hint}", source=source) from fault
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as fault:
        raise ConfigError(f"it is not readable YAML: {_one_line(fault)}", source=source) from fault
    if not isinstance(tree, DictConfig):
        raise ConfigError("it is no mapping of settings; start with `student: {path: ...}`", source=source)
    _settle_paths(tree, [file.parent, Path()])
    return tree


def _parse(overrides: Sequence[str], faults: list[str]) -> DictConfig:
    tree = OmegaConf.create()
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            faults.append(f"{override} is no setting; write key.sub=value, such as learner.steps=100")
            continue
        try:
            OmegaConf.update(tree, key.strip(), _value(text), force_add=True)
        except (yaml.YAMLError, OmegaConfBaseException, ValueError) as fault:
            faults.append(f"{override} cannot be read: {_one_line(fault)}; put quotes around the value")
    _settle_paths(tree, [Path()])
    return tree


def _value(text: str) -> Any:
    """A value as it would be read in a run file; nothing is null."""
    tree = OmegaConf.create(f"value: {text}")
    assert isinstance(tree, DictConfig), "a key and a value make a mapping"
    return tree["value"]


def _settle_paths(tree: DictConfig, folders: Sequence[Path]) -> None:
    """Make each relative path absolute from the first of `folders` in which it exists."""
    for key in PATHS:
        named = OmegaConf.select(tree, key)
        if not isinstance(named, str) or not named:
            continue
        given = Path(named).expanduser()
        found = next((folder / given for folder in folders if (folder / given).exists()), None)
        if found is not None:
            OmegaConf.update(tree, key, str(found.resolve()))


def validated(values: Values, faults: list[str]) -> RunConfig | None:
    """The configuration, or None; `faults` gets what is wrong, between settings too as far as can be seen."""
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as found:
        details = found.errors(include_url=False)
        faults += [_explain(detail) for detail in details]
        # Without what is wrong by itself, what is wrong together shows too.
        for detail in details:
            _remove(values, detail["loc"])
        try:
            rest = RunConfig.model_validate(values)
        except ValidationError:
            return None
        told = {dotted(detail["loc"]) for detail in details}
        faults += [fault for fault in rest.faults() if not any(key in fault for key in told)]
        return None
    faults += config.faults()
    return config.model_copy(update={"out": config.out.expanduser().resolve()})


def _remove(values: Values, keys: Keys) -> None:
    for key in keys[:-1]:
        if not isinstance(values.get(str(key)), dict):
            values.pop(str(key), None)  # a list, or a value where a section should be: gone as a whole
            return
        values = values[str(key)]
    values.pop(str(keys[-1]), None)


def _explain(fault: ErrorDetails) -> str:
    """One fault in our words: key, value, way out."""
    keys, value = fault["loc"], fault["input"]
    key = dotted(keys)
    kind = fault["type"]
    if kind == "extra_forbidden":
        return f"{key} is unknown; {_suggest(keys)}"
    if kind == "missing":
        return f"{key} is missing; set {key}=..."
    section, allowed = _kind_at(keys)
    if section is not None:
        names = ", ".join(section.model_fields)
        return f"{key} = {_shown(value)} is no section of settings; write one below it: {names}"
    return f"{key} = {_shown(value)} cannot be; it must be {allowed}"


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def _suggest(keys: Keys) -> str:
    """The nearest setting: beside the unknown one, or of its name elsewhere in the tree."""
    name, parent = str(keys[-1]), keys[:-1]
    everywhere = list(_leaves(RunConfig))
    if same := [key for key in everywhere if key.split(".")[-1] == name]:
        return f"did you mean {' or '.join(same)}?"
    section = _kind_at(parent)[0] if parent else RunConfig
    beside = list(section.model_fields) if section else []
    prefix = "".join(f"{key}." for key in parent)
    if close := difflib.get_close_matches(name, beside, 1):
        return f"did you mean {prefix}{close[0]}?"
    near = difflib.get_close_matches(f"{prefix}{name}", everywhere, 1)
    return f"did you mean {near[0]}?" if near else f"known here are {', '.join(beside)}"


def _leaves(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        if below := _section_of(field.annotation):
            yield from _leaves(below, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _section_of(annotation: Any) -> type[BaseModel] | None:
    options = [annotation, *get_args(annotation)]
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def _kind_at(keys: Keys) -> tuple[type[BaseModel] | None, str]:
    """The section at `keys`, or None and what the setting there may be, in words."""
    section: type[BaseModel] | None = RunConfig
    annotation: Any = None
    words = "a value of another kind"
    for key in keys:
        field = section.model_fields.get(str(key)) if section is not None else None
        if field is not None:
            annotation = field.annotation
            section, words = _section_of(annotation), _words(annotation, field.metadata)
        elif isinstance(key, int) and get_origin(annotation) is tuple:
            words = _words(get_args(annotation)[key])
    return section, words


def _words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    origin = get_origin(annotation)
    if hasattr(annotation, "__metadata__"):
        return _words(annotation.__origin__, annotation.__metadata__)
    if origin in (Union, UnionType):
        return " or ".join(_words(part, metadata) for part in get_args(annotation))
    if origin is Literal:
        return "one of " + ", ".join(map(str, get_args(annotation)))
    if origin is tuple:
        return "a list of " + " and ".join(_words(part) for part in get_args(annotation))
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return names.get(annotation, "a path") + _range(metadata if annotation in (int, float) else ())


def _range(metadata: Sequence[Any]) -> str:
    bounds: dict[str, Any] = {}
    for entry in metadata:
        for part in getattr(entry, "metadata", None) or [entry]:
            for name, words in BOUNDS.items():
                if (bound := getattr(part, name, None)) is not None:
                    bounds[words] = bound
    if {"at least", "at most"} <= bounds.keys():
        return f" from {bounds['at least']} to {bounds['at most']}"
    words = " and ".join(f"{words} {bound}" for words, bound in bounds.items())
    return f" {words}" if words else ""


def dotted(keys: Keys) -> str:
    """A key as the user writes it."""
    return ".".join(map(str, keys))


def _one_line(fault: BaseException) -> str:
    return " ".join(str(fault).split())

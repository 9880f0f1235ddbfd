"""Run files: YAML and dotted overrides in, one checked configuration out, or all faults at once.

Paths of models and data in a run file are taken from the file's own folder where they exist there, else from
the current folder, else they are names on the hub. Those in overrides start at the current folder, as does
`output_dir`.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, UnsupportedValueType
from pydantic import ValidationError

from ...common.config.eval import EvalConfig
from ...common.config.generate import GenerateConfig
from ...common.config.run import RunConfig
from ...common.errors import ABSENT, ConfigError, Fault
from .errors import Keys, explain

PATHS = (
    *("student.path", "teacher.path", "text.path"),
    *("data.train.path", "data.validation.path", "data.test.path", "data.chat_template"),
)
"""Settings that may name a file or folder."""
CONFIG_FILE = "config.yaml"
Values = dict[str, Any]
"""Settings as a run file gives them, not yet checked."""
Kind = TypeVar("Kind", RunConfig, EvalConfig, GenerateConfig)
Change = Callable[[Values, list[Fault]], Values]
"""From settings to settings; what is wrong goes into the list."""


def as_written(values: Values, faults: list[Fault]) -> Values:
    """A run file as it stands."""
    return values


def load_run(path: Path | str, overrides: Sequence[str] = (), change: Change = as_written) -> RunConfig:
    """Read a run file; each override `key.sub=value` (value in YAML) replaces a setting, or null, or a list.

    `change` may alter the settings before they are checked. Raises ConfigError with every fault, each with
    its key, its value and the way out.
    """
    file = Path(path)
    source = f"run file {file}"
    faults: list[Fault] = []
    values = read_settings(file, overrides, source, faults)
    config = validated(change(values, faults), faults)
    if faults or config is None:
        raise ConfigError(*faults, source=source)
    return config


def read_settings(file: Path | None, overrides: Sequence[str], source: str, faults: list[Fault]) -> Values:
    """What a file (if there is one) and overrides say together, not yet checked."""
    trees = [_read(file, source)] if file is not None else []
    tree = OmegaConf.merge(*trees, _parse_overrides(overrides, faults))
    try:
        values: Any = OmegaConf.to_container(tree, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(*faults, _interpolation_fault(error), source=source) from error
    return values


def read_mapping(given: Mapping[str, Any], source: str, faults: list[Fault]) -> Values:
    """What a mapping says, as if it stood in a file of the current folder; not yet checked."""
    try:
        tree = OmegaConf.create(dict(given))
        _resolve_paths(tree, [Path()])
        values: Any = OmegaConf.to_container(tree, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(*faults, _interpolation_fault(error), source=source) from error
    return values


def _interpolation_fault(error: OmegaConfBaseException) -> Fault:
    if isinstance(error, UnsupportedValueType):
        return Fault(error.full_key or "", ABSENT, _one_line(error), "give text, numbers, lists and mappings")
    return Fault("", ABSENT, _one_line(error), "set it, or write \\${ for a plain ${")


def merge_defaults(low: Mapping[str, Any], high: Mapping[str, Any]) -> Values:
    """The settings of `high`, and those of `low` that it does not name."""
    merged = dict(low)
    for key, value in high.items():
        under = merged.get(key)
        if isinstance(under, Mapping) and isinstance(value, Mapping):
            value = merge_defaults(under, value)
        merged[key] = value
    return merged


def save_resolved(config: RunConfig, folder: Path) -> Path:
    """Write every setting, as resolved, into a run file in `folder` that gives the same run."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / CONFIG_FILE
    file.write_text(as_yaml(config.model_dump(mode="json")), encoding="utf-8")
    return file


def as_yaml(tree: Any) -> str:
    """Resolved settings as a YAML text from which `read_settings` gives the same: a ${ in them is escaped."""
    return yaml.safe_dump(_escaped(tree), sort_keys=False, allow_unicode=True, width=100)


def escape(text: str) -> str:
    """The text with each ${ written as \\${, which is read as a plain one."""
    return re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", text)


def _escaped(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _escaped(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_escaped(value) for value in tree]
    return escape(tree) if isinstance(tree, str) else tree


def _read(file: Path, source: str) -> DictConfig:
    try:
        tree = OmegaConf.load(file)
    except FileNotFoundError as error:
        near = file.parent.glob("*.yaml") if file.parent.is_dir() else ()
        close = difflib.get_close_matches(file.name, [p.name for p in near], 1)
        hint = f"did you mean {file.parent / close[0]}?" if close else "give the path of a YAML file"
        raise ConfigError(Fault("", ABSENT, "there is no such file", hint), source=source) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        reason = f"it is not readable YAML: {_one_line(error)}"
        raise ConfigError(Fault("", ABSENT, reason, "mend the file"), source=source) from error
    if not isinstance(tree, DictConfig):
        fault = Fault("", ABSENT, "it is not a mapping of settings", "start with `student: {path: ...}`")
        raise ConfigError(fault, source=source)
    _resolve_paths(tree, [file.parent, Path()])
    return tree


def _parse_overrides(overrides: Sequence[str], faults: list[Fault]) -> DictConfig:
    tree = OmegaConf.create()
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            way_out = "write key.sub=value, such as learner.max_steps=100"
            faults.append(Fault(override, ABSENT, "is not a setting", way_out))
            continue
        try:
            OmegaConf.update(tree, key.strip(), _value(text), force_add=True)
        except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
            reason = f"cannot be read: {_one_line(error)}"
            faults.append(Fault(override, ABSENT, reason, "put quotes around the value"))
    _resolve_paths(tree, [Path()])
    return tree


def _value(text: str) -> Any:
    """A value as it would be read in a run file; nothing is null."""
    tree = OmegaConf.create(f"value: {text}")
    # Not resolved: a ${...} may refer to a setting of the file.
    values: Any = OmegaConf.to_container(tree, resolve=False)
    return values["value"]


def _resolve_paths(tree: DictConfig, folders: Sequence[Path]) -> None:
    """Make each relative path absolute from the first of `folders` in which it exists."""
    for key in PATHS:
        named = OmegaConf.select(tree, key, throw_on_resolution_failure=False)
        if not isinstance(named, str) or not named:
            continue
        OmegaConf.update(tree, key, resolve_path(named, folders))


def resolve_path(named: str, folders: Sequence[Path]) -> str:
    """The absolute path of what lies in the first of `folders` that has it; else the name as it is."""
    given = Path(named).expanduser()
    found = next((folder / given for folder in folders if (folder / given).exists()), None)
    return named if found is None else str(found.resolve())


def validated(values: Values, faults: list[Fault]) -> RunConfig | None:
    """The run, or None; `faults` gets what is wrong, between settings too as far as can be seen."""
    return validated_as(RunConfig, values, faults)


def validated_as(kind: type[Kind], values: Values, faults: list[Fault]) -> Kind | None:
    """The same for another tree of settings."""
    found: list[Fault] = []
    config = parsed(kind, values, found)
    if config is not None:
        faults += [*found, *unrelated(config.faults(), found)]
    else:
        faults += found
    return None if found or config is None else config.resolved()


def parsed(kind: type[Kind], values: Values, found: list[Fault]) -> Kind | None:
    """The tree without the settings that are wrong by themselves, each of which goes into `found`.

    None if there is no tree without them.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as errors:
        details = errors.errors(include_url=False)
    found += [explain(detail, kind) for detail in details]
    rest = copy.deepcopy(values)
    for detail in details:
        if detail["type"] == "missing":
            _fill(rest, detail["loc"])
        else:
            _remove(rest, detail["loc"])
    try:
        return kind.model_validate(rest)
    except ValidationError:
        return None


def unrelated(faults: Sequence[Fault], alone: Sequence[Fault]) -> list[Fault]:
    """Those of `faults` between settings in which no setting of `alone`, wrong by itself, takes part."""
    return [fault for fault in faults if not any(fault.concerns(known.key) for known in alone)]


def _fill(values: Values, keys: Keys) -> None:
    """Something in the place of what is missing: models and paths are all that has no default."""
    for key in keys[:-1]:
        if not isinstance(values.get(str(key)), dict):
            return
        values = values[str(key)]
    values[str(keys[-1])] = "-" if keys[-1] == "path" else {"path": "-"}


def _remove(values: Values, keys: Keys) -> None:
    for key in keys[:-1]:
        if not isinstance(values.get(str(key)), dict):
            values.pop(str(key), None)  # a list, or a value in place of a section: removed as a whole
            return
        values = values[str(key)]
    values.pop(str(keys[-1]), None)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


FIRST = "name models (--models A B) and data (--data FILE ...), or give a file that does"
"""The way out where an evaluation has nothing to evaluate."""


def load_eval(
    path: Path | str | None = None, overrides: Sequence[str] = (), flags: Mapping[str, Any] | None = None
) -> EvalConfig:
    """Read an evaluation: a YAML file, or `flags`, or both (flags win), then `key.sub=value` overrides.

    Raises ConfigError with every fault, each with its key, its value and the way out.
    """
    file = Path(path) if path is not None else None
    source = f"evaluation file {file}" if file else "this evaluation"
    faults: list[Fault] = []
    values = read_settings(file, overrides, source, faults)
    resolve_listed_paths(values, [file.parent, Path()] if file else [Path()])
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    resolve_listed_paths(given, [Path()])
    config = checked_eval(values | given, faults)
    if faults or config is None:
        raise ConfigError(*faults, source=source)
    return config


def checked_eval(values: Values, faults: list[Fault]) -> EvalConfig | None:
    """The evaluation that these settings make, or None; `faults` gets what is wrong."""
    missing = [Fault(key, ABSENT, "is missing", FIRST) for key in ("models", "data") if not values.get(key)]
    faults += missing
    return None if missing else validated_as(EvalConfig, values, faults)


def resolve_listed_paths(values: Values, folders: Sequence[Path]) -> None:
    """Paths from the first of `folders` that has them; models keep the name under which they were given."""
    for key in ("models", "data"):
        if isinstance(values.get(key), list | tuple):
            values[key] = [_resolved_entry(entry, folders, named=key == "models") for entry in values[key]]
    if isinstance(values.get("chat_template"), str):
        values["chat_template"] = resolve_path(values["chat_template"], folders)
    if values.get("teacher") is not None:
        values["teacher"] = _resolved_entry(values["teacher"], folders, named=True)


def _resolved_entry(entry: Any, folders: Sequence[Path], *, named: bool) -> Any:
    if isinstance(entry, str):
        entry = {"path": entry}
    if not isinstance(entry, Mapping) or not isinstance(entry.get("path"), str):
        return entry
    name = {"name": entry.get("name") or entry["path"]} if named else {}
    return {**entry, **name, "path": resolve_path(entry["path"], folders)}

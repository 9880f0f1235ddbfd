"""Evaluation files and the flags of `minillm eval`: one checked configuration out, or all faults at once.

As in a run file, relative paths are taken from the file's own folder where they exist there, else from the
folder one stands in; those given as flags start where one stands. Tables call models as they were written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.errors import ConfigError
from ..common.eval_config import EvalConfig
from .run_file import Values, read_settings, settled, validated_as

FIRST = "name models (--models A B) and data (--data FILE ...), or give a file that does"


def load_eval(
    path: Path | str | None = None, overrides: Sequence[str] = (), flags: Mapping[str, Any] | None = None
) -> EvalConfig:
    """Read an evaluation: a YAML file, or `flags`, or both (flags win), then `key.sub=value` overrides.

    Raises ConfigError with every fault, each with its key, its value and the way out.
    """
    file = Path(path) if path is not None else None
    source = f"evaluation file {file}" if file else "this evaluation"
    faults: list[str] = []
    values = read_settings(file, overrides, source, faults)
    settle(values, [file.parent, Path()] if file else [Path()])
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    settle(given, [Path()])
    return checked(values | given, faults, source)


def checked(values: Values, faults: list[str], source: str) -> EvalConfig:
    """The configuration that these settings make. Raises ConfigError with every fault."""
    if file_faults := [f"{key} is missing; {FIRST}" for key in ("models", "data") if not values.get(key)]:
        raise ConfigError(*faults, *file_faults, source=source)
    config = validated_as(EvalConfig, values, faults)
    if faults or config is None:
        raise ConfigError(*faults, source=source)
    return config


def settle(values: Values, folders: Sequence[Path]) -> None:
    """Paths from the first of `folders` that has them; models keep the name under which they were given."""
    for key in ("models", "data"):
        if isinstance(values.get(key), list | tuple):
            values[key] = [_settled_entry(entry, folders, named=key == "models") for entry in values[key]]
    if values.get("teacher") is not None:
        values["teacher"] = _settled_entry(values["teacher"], folders, named=True)


def _settled_entry(entry: Any, folders: Sequence[Path], *, named: bool) -> Any:
    if isinstance(entry, str):
        entry = {"path": entry}
    if not isinstance(entry, Mapping) or not isinstance(entry.get("path"), str):
        return entry
    name = {"name": entry.get("name") or entry["path"]} if named else {}
    return {**entry, **name, "path": settled(entry["path"], folders)}

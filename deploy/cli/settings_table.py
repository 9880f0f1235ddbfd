"""Every setting with its default and meaning, read off the configuration tree itself."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from rich.table import Table

from ...common.config.eval import EvalConfig
from ...common.config.run import RunConfig
from ...common.errors import ConfigError
from ..config.errors import section_of

TREES: dict[str, type[BaseModel]] = {"run": RunConfig, "eval": EvalConfig}


def settings_table(prefix: str = "", of: str = "run") -> Table:
    """A table of the settings whose dotted name begins with `prefix`. Raises ConfigError if none does."""
    root = TREES[of]
    names = [name for name, _, _ in iter_settings(root)]
    if not any(name.startswith(prefix) for name in names):
        words = [*names, *{name.split(".")[0] for name in names}]
        close = difflib.get_close_matches(prefix, words, 1)
        hint = f"did you mean {close[0]}?" if close else "`minillm settings` lists all"
        raise ConfigError(f"no setting begins with {prefix}; {hint}", source="settings")
    table = Table("setting", "default", "meaning", box=None, padding=(0, 2, 0, 0))
    for name, default, meaning in iter_settings(root):
        if name.startswith(prefix):
            table.add_row(name, default, meaning)
    return table


def iter_settings(section: type[BaseModel], path: str = "") -> Iterator[tuple[str, str, str]]:
    """(dotted name, default, meaning) of each setting below `section`."""
    for key, field in section.model_fields.items():
        inner = section_of(field.annotation)
        if inner is not None:
            yield from iter_settings(inner, f"{path}{key}.")
            continue
        default = "required" if field.default is PydanticUndefined else _as_yaml(field.default)
        yield f"{path}{key}", default, " ".join((field.description or "").split())


def _as_yaml(value: Any) -> str:
    """A default as one would write it in a run file."""
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)

"""What is wrong with a setting, in words: key, value, way out, read off the tree of settings itself."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
"""How a limit of pydantic is read aloud."""
Keys = tuple[str | int, ...]


def explain(fault: ErrorDetails, root: type[BaseModel]) -> str:
    """One fault in our words: key, value, way out. `root` is the tree that was asked for."""
    keys, value = fault["loc"], fault["input"]
    key = dotted(keys)
    kind = fault["type"]
    if kind == "extra_forbidden":
        return f"{key} is unknown; {_suggest(keys, root)}"
    if kind == "missing":
        return f"{key} is missing; set {key}=..."
    section, allowed = _kind_at(keys, root)
    if section is not None:
        names = ", ".join(section.model_fields)
        return f"{key} = {_shown(value)} is no section of settings; write one below it: {names}"
    return f"{key} = {_shown(value)} cannot be; it must be {allowed}"


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def _suggest(keys: Keys, root: type[BaseModel]) -> str:
    """The nearest setting: beside the unknown one, or of its name elsewhere in the tree."""
    name, parent = str(keys[-1]), keys[:-1]
    everywhere = list(_leaves(root))
    if same := [key for key in everywhere if key.split(".")[-1] == name]:
        return f"did you mean {' or '.join(same)}?"
    section = _kind_at(parent, root)[0] if parent else root
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


def _kind_at(keys: Keys, root: type[BaseModel]) -> tuple[type[BaseModel] | None, str]:
    """The section at `keys`, or None and what the setting there may be, in words."""
    section: type[BaseModel] | None = root
    annotation: Any = None
    words = "a value of another kind"
    for key in keys:
        field = section.model_fields.get(str(key)) if section is not None else None
        if field is not None:
            annotation = field.annotation
            section, words = _section_of(annotation), _words(annotation, field.metadata)
        elif isinstance(key, int) and get_origin(annotation) is tuple:
            inner = get_args(annotation)
            one = inner[0] if inner[-1] is Ellipsis else inner[key]
            section, words = _section_of(one), _words(one)
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
        parts = [part for part in get_args(annotation) if part is not Ellipsis]
        return "a list of " + " and ".join(_words(part) for part in parts)
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

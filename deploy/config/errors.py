"""What is wrong with a setting, as a fault: key, value, way out, read off the tree of settings itself."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from ...common.errors import ABSENT, Fault
from .suggestions import suggest, suggest_value

BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
"""How a limit of pydantic is read aloud."""
Keys = tuple[str | int, ...]


def explain(error: ErrorDetails, root: type[BaseModel]) -> Fault:
    """One error of pydantic as a fault. `root` is the tree that was asked for."""
    keys, value = error["loc"], error["input"]
    key = dotted(keys)
    if error["type"] == "extra_forbidden":
        return Fault(key, ABSENT, "is unknown", unknown_fix(keys, root))
    if error["type"] == "missing":
        return Fault(key, ABSENT, "is missing", f"set {key}=...")
    section, annotation, metadata = _kind_at(keys, root)
    if section is not None:
        names = ", ".join(section.model_fields)
        return Fault(key, value, "is not a section of settings", f"write one below it: {names}")
    expected = f"expected {_words(annotation, metadata)}"
    hint = suggest_value(keys, value, _literals(annotation))
    return Fault(key, value, "", f"{expected}; {hint}" if hint else expected)


def unknown_fix(keys: Keys, root: type[BaseModel]) -> str:
    """What an unknown setting was probably meant to be, by names of other software or the nearest of ours."""
    everywhere = list(_leaves(root))
    if known := suggest(keys, everywhere):
        return known
    name, parent = str(keys[-1]), keys[:-1]
    section = _kind_at(parent, root)[0] if parent else root
    beside = list(section.model_fields) if section else []
    prefix = "".join(f"{key}." for key in parent)
    if close := difflib.get_close_matches(name, beside, 1):
        return f"did you mean {prefix}{close[0]}?"
    near = difflib.get_close_matches(f"{prefix}{name}", everywhere, 1)
    return f"did you mean {near[0]}?" if near else f"known here are {', '.join(beside)}"


def _leaves(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        if below := section_of(field.annotation):
            yield from _leaves(below, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a setting of this type is; None for one with a value."""
    options = [annotation, *get_args(annotation)]
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def _kind_at(keys: Keys, root: type[BaseModel]) -> tuple[type[BaseModel] | None, Any, Sequence[Any]]:
    """What stands at `keys`: its section, if it is one, its annotation, and the limits of its value."""
    section: type[BaseModel] | None = root
    annotation: Any = None
    metadata: Sequence[Any] = ()
    for key in keys:
        field = section.model_fields.get(str(key)) if section is not None else None
        if field is not None:
            annotation, metadata = field.annotation, field.metadata
            section = section_of(annotation)
        elif isinstance(key, int) and (inner := _list_kinds(annotation)):
            annotation, metadata = inner[0] if inner[-1] is Ellipsis else inner[key], ()
            section = section_of(annotation)
    return section, annotation, metadata


def _list_kinds(annotation: Any) -> tuple[Any, ...]:
    """What the entries of a list are; an Ellipsis at the end means any number of the first."""
    options = [annotation, *get_args(annotation)]
    return next((get_args(option) for option in options if get_origin(option) is tuple), ())


def _literals(annotation: Any) -> list[Any]:
    """Every value that a Literal within the annotation names."""
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        return list(parts)
    return [value for part in parts for value in _literals(part)]


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
    if annotation is None:
        return "a value of another kind"
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

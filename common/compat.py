"""Internals of other libraries, reached by name: what is missing is told in one error.

A library may rename or drop what it does not document. All that is used of that kind goes through one compat
module per library, which lists it by dotted name in `REQUIRED`. What counts is whether it is there: versions
are named in the error only.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Collection, Iterable
from importlib import metadata
from types import ModuleType
from typing import Any

from .errors import IncompatibleLibrary

OURS = "minillm-ray"
"""The distribution whose requirements say which versions of a library are fine."""
_MISSING: Any = object()


def resolve(library: str, dotted: str) -> Any:
    """What a dotted name stands for: modules are imported on the way, then attributes are followed.

    Raises IncompatibleLibrary if it is missing. An error of another kind while a module is imported stays as
    it is.
    """
    first, *rest = dotted.split(".")
    found = _module(first)
    for name in rest:
        owner, found = found, getattr(found, name, _MISSING)
        if found is _MISSING and isinstance(owner, ModuleType) and "__path__" in vars(owner):
            found = _module(f"{owner.__name__}.{name}")
    if found is _MISSING:
        raise incompatible(library, [dotted])
    return found


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if missing.name != name:  # it is there, but something that it imports is not
            raise
        return _MISSING


def check(library: str, required: Iterable[str], on_instances: Collection[str] = ()) -> None:
    """Raises IncompatibleLibrary with all of `required` that is missing.

    Of what only instances have, the class is looked for; `member` looks at the object, when it is there.
    """

    def found(dotted: str) -> bool:
        return available(library, _owner(dotted) if dotted in on_instances else dotted)

    missing = [dotted for dotted in required if not found(dotted)]
    if missing:  # without what would be missing in something that is missing itself
        raise incompatible(library, [m for m in missing if not any(m.startswith(f"{o}.") for o in missing)])


def available(library: str, dotted: str) -> bool:
    """Whether `resolve` would find it."""
    try:
        resolve(library, dotted)
    except IncompatibleLibrary:
        return False
    return True


def member(library: str, owner: Any, dotted: str) -> Any:
    """The last part of `dotted` ("package.module.Class.attribute") as an attribute of an object at hand.

    For what a class gives to its instances only. Raises IncompatibleLibrary if this one lacks it.
    """
    try:
        return getattr(owner, _last(dotted))
    except AttributeError as missing:
        raise incompatible(library, [dotted]) from missing


def lazy_names(library: str, module: str, names: dict[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__` (PEP 562) that resolves `names` (name here -> dotted name) when asked."""

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return resolve(library, names[name])

    return find


def incompatible(library: str, missing: Iterable[str]) -> IncompatibleLibrary:
    """The error that names the installed version, what is missing, and the versions that are fine."""
    distribution, version = _installed(library)
    found = f"{distribution} {version}" if version else f"{library} is not installed: it"
    wanted = _requirement(distribution)
    way_out = f'pip install "{wanted}"' if wanted else f"install the version that {OURS} asks for"
    return IncompatibleLibrary(f"{found} lacks what {OURS} uses of it: {', '.join(missing)}; {way_out}")


def _installed(library: str) -> tuple[str, str | None]:
    """Which distribution brought the library, and its version. One library may come as any of several."""
    for distribution in metadata.packages_distributions().get(library, [library]):
        try:
            return distribution, metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return library, None


def _requirement(distribution: str) -> str | None:
    """What our own package asks for, such as "ray[default]<3,>=2.60"; None where it is not installed."""
    try:
        asked = metadata.requires(OURS) or []
    except metadata.PackageNotFoundError:
        return None
    # Those of an extra, such as a build for CPUs alone, come after those of everybody.
    plain = sorted((line.partition(";")[::2] for line in asked), key=lambda parts: "extra" in parts[1])
    return next((text.strip() for text, _ in plain if _name(text) == _name(distribution)), None)


def _owner(dotted: str) -> str:
    return dotted.rpartition(".")[0]


def _last(dotted: str) -> str:
    return dotted.rpartition(".")[2]


def _name(requirement: str) -> str:
    """The name that a requirement begins with, as package indexes compare them."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    return re.sub(r"[-_.]+", "-", found[0]).lower() if found else ""

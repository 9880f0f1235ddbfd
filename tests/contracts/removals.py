"""What our compat modules say when a library lacks one of the things that they list.

As a program (`python -m minillm_ray.tests.contracts.removals actors.vllm_compat`) for libraries that change
the process they are imported into: writes what is said without each, as JSON.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from minillm_ray.common import compat
from minillm_ray.common.errors import IncompatibleLibrary

_distributions = functools.cache(metadata.packages_distributions)  # takes a second in a large environment


def static_names(module: Any) -> list[str]:
    """What of a compat module's `REQUIRED` is there before any object is."""
    return [name for name in module.REQUIRED if name not in on_instances(module)]


def on_instances(module: Any) -> tuple[str, ...]:
    """What of `REQUIRED` only objects have."""
    return getattr(module, "ON_INSTANCES", ())


def remove(patch: pytest.MonkeyPatch, library: str, dotted: str) -> None:
    """Take what a dotted name stands for out of the library, wherever it is defined."""
    path, _, name = dotted.rpartition(".")
    owner = compat.resolve(library, path)
    if isinstance(owner, ModuleType) and name in vars(owner):
        patch.delattr(owner, name)
        patch.delattr(owner, "__getattr__", raising=False)  # may make it anew
        return
    classes = inspect.getmro(owner if inspect.isclass(owner) else type(owner))
    for one in [one for one in classes if name in vars(one)]:
        patch.delattr(one, name)


def said_without(module: Any, dotted: str) -> str | None:
    """What the check of a compat module says where this is missing; None if it says nothing."""
    compat.resolve(module.LIBRARY, dotted)  # so that the library is whole before something is removed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metadata, "packages_distributions", _distributions)
        remove(patch, module.LIBRARY, dotted)
        try:
            compat.check(module.LIBRARY, module.REQUIRED, on_instances(module))
        except IncompatibleLibrary as error:
            return str(error)
    return None


def not_mentioned(module: Any) -> list[str]:
    """What a compat module lists as of instances or as optional, and the library's source knows nothing of.

    The source is the class's file and those beside it.
    """
    listed = (*on_instances(module), *getattr(module, "OPTIONAL", ()))
    return [name for name in listed if not _mentioned(module.LIBRARY, name)]


def _mentioned(library: str, dotted: str) -> bool:
    if compat.available(library, dotted):
        return True
    path, _, name = dotted.rpartition(".")
    file = importlib.import_module(compat.resolve(library, path).__module__).__file__
    assert file is not None, path
    return any(name in one.read_text(encoding="utf-8") for one in Path(file).parent.glob("*.py"))


def report(name: str) -> dict[str, Any]:
    """All of the above for one compat module, by its name inside the package."""
    if name == "actors.vllm_compat":
        from minillm_ray.actors.vllm_engine import prepare_environment

        prepare_environment(1)
    module = importlib.import_module(f"minillm_ray.{name}")
    compat.check(module.LIBRARY, module.REQUIRED, on_instances(module))
    return {
        "said": {dotted: said_without(module, dotted) for dotted in static_names(module)},
        "not mentioned": not_mentioned(module),
    }


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(report(sys.argv[1])))

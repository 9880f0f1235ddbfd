"""Copies of a model with something wrong in one file, and what is said of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, MutableMapping
from itertools import count
from pathlib import Path
from typing import Any

from minillm_ray.common.config.run import ModelConfig
from minillm_ray.common.errors import Fault, InputError, ModelError
from minillm_ray.deploy.models.inspect import inspect_model
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS = "model.safetensors"
_numbers = count()


def faults_of(folder: Path, **how: Any) -> tuple[Fault, ...]:
    """What `minillm check` would say of a student; each error is a ModelError, never another."""
    found: list[InputError] = []
    inspect_model(ModelConfig(path=str(folder)), "student", found, **how)
    assert all(type(error) is ModelError for error in found)
    faults = tuple(fault for error in found for fault in error.faults)
    for fault in faults:
        assert fault.key == "student.path"
        assert fault.value == str(folder)
        assert fault.fix
    return faults


def said(folder: Path, **how: Any) -> str:
    """The one thing that is wrong with a model, in words."""
    (fault,) = faults_of(folder, **how)
    return str(fault)


def copy_of(folder: Path) -> Path:
    """The same folder again, to be broken."""
    return Path(shutil.copytree(folder, folder.parent / f"{folder.name}-{next(_numbers)}"))


def with_json(folder: Path, file: str, **changes: Any) -> Path:
    """A copy with other fields in a JSON file."""
    copy = copy_of(folder)
    values = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps(values | changes))
    return copy


def with_text(folder: Path, file: str, text: str) -> Path:
    """A copy in which a file says something else."""
    copy = copy_of(folder)
    (copy / file).write_text(text)
    return copy


def with_tensors(folder: Path, change: Callable[[MutableMapping[str, Tensor]], object]) -> Path:
    """A copy with other weights."""
    copy = copy_of(folder)
    tensors = load_file(copy / WEIGHTS)
    change(tensors)
    save_file(tensors, copy / WEIGHTS, metadata={"format": "pt"})
    return copy

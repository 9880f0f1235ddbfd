"""Which files of a folder hold a model's weights: one rule for all that read them."""

from __future__ import annotations

import json
from pathlib import Path

from ..common.errors import ModelError

WHOLE = "model.safetensors"
"""The standard name of weights in one file."""
INDEX = "model.safetensors.index.json"
"""Says which files hold weights that are cut in pieces."""


def weight_files(folder: Path) -> list[Path]:
    """The file of the standard name, else those that the index names, in the order of their names.

    transformers chooses in the same way. Raises ModelError if there is neither, or the index is broken.
    """
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    if not (folder / INDEX).is_file():
        raise ModelError(f"{folder} holds neither {WHOLE} nor {INDEX}; give a folder saved as safetensors")
    try:
        return [folder / name for name in indexed_files((folder / INDEX).read_text(encoding="utf-8"))]
    except ValueError as fault:
        raise ModelError(f"{folder / INDEX} {fault}; save the model again") from fault


def indexed_files(text: str) -> list[str]:
    """Names of the files that an index lists. Raises ValueError if it is no index of files beside it."""
    try:
        index = json.loads(text)
    except ValueError as fault:
        raise ValueError(f"is no JSON ({fault})") from fault
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError("has no weight_map from tensors to files")
    if not isinstance(index.get("metadata"), dict):  # transformers reads it without asking
        raise ValueError("has no metadata")
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"names {name!r}, which is no safetensors file beside it")
    return sorted(set(weight_map.values()))

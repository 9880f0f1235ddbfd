"""Which files of a folder are which split."""

from __future__ import annotations

import re
from pathlib import Path

from .opening import SPLIT_WORDS
from .registry import Readers

NO_RECORDS = re.compile(
    r"(dataset_infos?|dataset_dict|state|config)\.json|[._].*|(readme|licen[cs]e).*", re.I
)
"""Names of files in a data set's folder that describe it and hold no records."""


def files_by_split(folder: Path, readers: Readers) -> tuple[dict[str, list[Path]], list[Path]]:
    """(split -> its files in the order of their names, files that no reader takes).

    Where no name has the word of a split, all files are the split train. Where some have and others do not,
    the others are in the split "".
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _describes(path, folder)]
    known = [path for path in files if readers.of(path) is not None]
    splits: dict[str, list[Path]] = {}
    for path in known:
        splits.setdefault(_split_of(path, folder), []).append(path)
    if set(splits) == {""}:
        splits = {"train": known}
    return splits, [path for path in files if path not in known]


def _describes(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    return bool(NO_RECORDS.fullmatch(path.name)) or any(part.startswith(".") for part in parts)


def _split_of(path: Path, folder: Path) -> str:
    """The split that the file's name says, else the one that the nearest folder says; "" if none does."""
    parts = path.relative_to(folder).parts
    for part in reversed(parts):
        words = re.split(r"[^a-z]+", part.lower().partition(".")[0] if part == parts[-1] else part.lower())
        for split, names in SPLIT_WORDS.items():
            if any(word in names for word in words):
                return split
    return ""

"""Data that a caller hands over from Python, kept in the run's folder as Parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...common.errors import ABSENT, DataError, Fault

Data = Any
"""A `datasets.Dataset`, a sequence of mappings, or a mapping of these by split."""
SPLITS = ("train", "validation", "test")
FOLDER = "data"
"""Below the run's folder."""


def paths_of(data: Data, folder: Path) -> dict[str, Path]:
    """Split -> the file that `write_data` makes of it. Raises DataError for a split that runs do not have."""
    return {split: folder / FOLDER / f"{split}.parquet" for split in _by_split(data)}


def write_data(data: Data, folder: Path) -> None:
    """Write every split below `folder`. Raises DataError for rows that do not make a table."""
    paths = paths_of(data, folder)
    for split, rows in _by_split(data).items():
        table = _table(rows, split)
        paths[split].parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, paths[split])


def _by_split(data: Data) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        return {"train": data}
    unknown = [str(split) for split in data if split not in SPLITS]
    if unknown or not data:
        raise DataError(
            Fault(
                "data",
                ABSENT,
                f"is a mapping with {', '.join(unknown) or 'nothing in it'}",
                f"expected splits called {', '.join(SPLITS)}",
            )
        )
    return dict(data)


def _table(rows: Any, split: str) -> pa.Table:
    key = f"data[{split}]"
    if hasattr(rows, "with_format") and hasattr(rows, "features"):  # a datasets.Dataset, not imported for it
        return rows.with_format("arrow")[:]
    if isinstance(rows, str | bytes) or not isinstance(rows, Sequence):
        raise DataError(
            Fault(
                key,
                ABSENT,
                f"is a {type(rows).__name__}",
                f"give a datasets.Dataset or a list of mappings (a file is named by data.{split}.path)",
            )
        )
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            reason = f": row {number} is a {type(row).__name__}"
            raise DataError(Fault(key, ABSENT, reason, "give a mapping for every row"))
    if not rows:
        raise DataError(Fault(key, ABSENT, "has no rows", "give at least one"))
    names = list(dict.fromkeys(str(name) for row in rows for name in row))
    try:
        return pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        fault = Fault(key, ABSENT, f"has a column of several types: {error}", "make it of one")
        raise DataError(fault) from error

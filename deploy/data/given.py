"""Data that a caller hands over from Python, kept in the run's folder as Parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...common.errors import ABSENT, DataError, Fault
from ...common.process import write_atomically

Data = Any
"""A `datasets.Dataset`, a sequence of mappings, or a mapping of these by split."""
SPLITS = ("train", "validation", "test")
FOLDER = "data"
"""Below the run's folder."""


def paths_of(data: Data, folder: Path) -> dict[str, Path]:
    """Split -> the file that `write_data` makes of it. Raises DataError for a split that runs do not have."""
    return {split: folder / FOLDER / f"{split}.parquet" for split in _by_split(data)}


def write_data(data: Data, folder: Path, *, resumes: bool = False) -> None:
    """Write every split below `folder`; rows that lie there stay where that work `resumes`.

    Raises DataError for rows that do not make a table, or differ from those that the work was begun with.
    """
    paths = paths_of(data, folder)
    tables = {split: _table(rows, split) for split, rows in _by_split(data).items()}
    for split, table in tables.items():
        if resumes and paths[split].exists() and not table.equals(pq.read_table(paths[split])):
            reason = f"differs from what was begun in {folder}, kept in {paths[split]}"
            way_out = "give the same rows, or another output_dir"
            raise DataError(Fault(f"data[{split}]", ABSENT, reason, way_out))
    for split, table in tables.items():
        if not (resumes and paths[split].exists()):
            with write_atomically(paths[split]) as file:
                pq.write_table(table, file)


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

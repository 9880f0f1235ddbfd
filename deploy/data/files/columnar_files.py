"""Parquet and Arrow files, batch by batch; each file has its own schema."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .opening import Placed, UnreadableRecord

BATCH = 1024


def read_parquet(path: Path, split: str = "train") -> Iterator[Placed]:
    """Rows of a Parquet file."""
    del split
    with pq.ParquetFile(path) as file:
        yield from _rows(file.schema_arrow, file.iter_batches(BATCH))


def read_arrow(path: Path, split: str = "train") -> Iterator[Placed]:
    """Rows of an Arrow file, or stream, such as `Dataset.save_to_disk` of the library datasets writes."""
    del split
    with pa.memory_map(str(path)) as source:
        try:
            stream = pa.ipc.open_stream(source)
        except pa.ArrowInvalid:
            source.seek(0)
            file = pa.ipc.open_file(source)
            yield from _rows(file.schema, (file.get_batch(n) for n in range(file.num_record_batches)))
            return
        yield from _rows(stream.schema, iter(stream))


def without_padding(value: Any) -> Any:
    """A nested value without the keys that are null: a table pads each record with the keys of the others."""
    if isinstance(value, dict):
        return {key: without_padding(one) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [without_padding(one) for one in value]
    return value


def _rows(schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> Iterator[Placed]:
    twice = {name for name in schema.names if schema.names.count(name) > 1}
    if twice:
        reason = f"has the column {sorted(twice)[0]!r} twice"
        raise UnreadableRecord("row 1", reason, "give each column its own name")
    nested = [name for name in schema.names if pa.types.is_nested(schema.field(name).type)]
    number = 0
    for batch in batches:
        for row in batch.to_pylist(maps_as_pydicts="strict"):
            number += 1
            for name in nested:
                row[name] = without_padding(row[name])
            yield f"row {number}", row

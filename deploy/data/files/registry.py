"""Which reader takes which file; readers from outside are plug-ins of the kind `data_readers`.

A reader takes one file and yields its records in their order, each as (place, mapping). A plug-in is called
by the ending that it takes (".xlsx") and yields mappings alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ....common.plugins import find_plugin, plugin_names
from .columnar_files import read_arrow, read_parquet
from .csv_files import read_csv, read_tsv
from .json_files import read_json, read_json_lines
from .opening import COMPRESSED, Placed, UnreadableRecord, read_text

FileReader = Callable[[Path, str], Iterator[Placed]]
"""Reads the records of a file that belong to a split; most files are one split, and ignore it."""
BUILTIN: dict[str, FileReader] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".txt": read_text,
}


class Readers:
    """The readers of a run: the shipped ones, and those of its plug-ins, which come first."""

    def __init__(self, plugins: Sequence[str] = ()):
        self._plugins = plugins
        self._offered = set(plugin_names("data_readers", plugins))

    @property
    def endings(self) -> list[str]:
        """All endings that some reader takes, without those of compression."""
        return [*BUILTIN, *sorted(self._offered - set(BUILTIN))]

    def of(self, path: Path | str) -> FileReader | None:
        """The reader that takes a file of this name; None if none does."""
        ending = ending_of(path)
        if ending in self._offered:
            return _plugged_in(find_plugin("data_readers", ending, self._plugins))
        return BUILTIN.get(ending)


def ending_of(path: Path | str) -> str:
    """The ending that says what a file holds: .jsonl of both a.jsonl and a.jsonl.gz."""
    name = Path(path)
    if name.suffix.lower() in COMPRESSED:
        name = name.with_suffix("")
    return name.suffix.lower()


def _plugged_in(read: Callable[[Path], Iterator[Mapping[str, Any]]]) -> FileReader:
    """A reader from outside yields records alone; their locations are counted here."""

    def numbered(path: Path, split: str) -> Iterator[Placed]:
        del split
        for number, record in enumerate(read(path), 1):
            place = f"row {number}"
            if not isinstance(record, Mapping):
                reason = f"is a {type(record).__name__}"
                raise UnreadableRecord(place, reason, "have the reader yield mappings of columns")
            yield place, record

    return numbered

"""How files are opened, and what a reader yields: records with their locations."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa

Placed = tuple[str, Mapping[str, Any]]
"""Where a record stands in its file ("line 7", "element 2", "row 5"; from 1), and the record."""
COMPRESSED = (".gz", ".zst")
SPLIT_WORDS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words in the name of a file or folder that say which split it is, as the hub reads them."""
TO_UTF8 = "convert the file to UTF-8, such as by iconv -f LATIN1 -t UTF-8"


class UnreadableRecord(Exception):
    """A record, or a file from some place on, cannot be read."""

    def __init__(self, place: str, reason: str, fix: str):
        super().__init__(place, reason, fix)
        self.place, self.reason, self.fix = place, reason, fix


def open_bytes(path: Path) -> IO[bytes]:
    """A file's content, decompressed by its ending."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if suffix == ".zst":
        return cast(IO[bytes], io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")))
    return path.open("rb")


def decoded(content: bytes, place: str) -> str:
    """Bytes as UTF-8 text. Raises UnreadableRecord."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableRecord(place, f"is not UTF-8: {error}", TO_UTF8) from error


def read_text(path: Path, split: str) -> Iterator[Placed]:
    """A text file is one record with the column `text`."""
    del split
    with open_bytes(path) as file:
        content = file.read()
    yield "line 1", {"text": decoded(content.removeprefix(b"\xef\xbb\xbf"), "line 1")}

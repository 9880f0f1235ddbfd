"""CSV and TSV files: every column is text, as it stands."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from pathlib import Path

from .opening import TO_UTF8, Placed, UnreadableRecord, open_bytes

_MEND = "mend it: quote fields with commas, quotes or line breaks, and double the quotes within"


def read_csv(path: Path, split: str = "train") -> Iterator[Placed]:
    """Fields between commas, the names of the columns on the first line."""
    del split
    yield from _read(path, ",")


def read_tsv(path: Path, split: str = "train") -> Iterator[Placed]:
    """Fields between tabs; quotes are read as in CSV."""
    del split
    yield from _read(path, "\t")


def _read(path: Path, delimiter: str) -> Iterator[Placed]:
    csv.field_size_limit(sys.maxsize)  # of the process; a long text is no mistake
    with open_bytes(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        rows = csv.reader(text, delimiter=delimiter, strict=True)
        place, names = "line 1", None
        try:
            while True:
                place = f"line {rows.line_num + 1}"
                row = next(rows, None)
                if row is None:
                    return
                if not row:
                    continue  # a blank line
                if names is None:
                    names = _names(row, place, delimiter)
                elif len(row) != len(names):
                    reason = f"has {len(row)} fields, and the first line names {len(names)} columns"
                    raise UnreadableRecord(place, reason, _MEND)
                else:
                    yield place, dict(zip(names, row, strict=True))
        except csv.Error as error:
            raise UnreadableRecord(place, f"cannot be read: {error}", _MEND) from error
        except UnicodeDecodeError as error:
            raise UnreadableRecord(_first_not_utf8(path) or place, "is not UTF-8", TO_UTF8) from error


def _names(row: list[str], place: str, delimiter: str) -> list[str]:
    twice = {name for name in row if row.count(name) > 1}
    if twice:
        reason = f"names the column {sorted(twice)[0]!r} twice"
        raise UnreadableRecord(place, reason, "give each column its own name")
    others = [mark for mark in ",;\t|" if mark != delimiter and mark in row[0]]
    if len(row) == 1 and others:
        between = {"\t": "tabs (name it .tsv)", ",": "commas (name it .csv)"}.get(others[0], repr(others[0]))
        reason = f"names one column, {row[0]!r}: its fields seem to stand between {between}"
        raise UnreadableRecord(place, reason, "write commas in .csv files and tabs in .tsv files")
    return row


def _first_not_utf8(path: Path) -> str | None:
    with open_bytes(path) as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return f"line {number}"
    return None

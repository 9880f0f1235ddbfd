"""Data sets as columns: local files by readers that guess nothing, sets of the hub through `datasets`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.config.data import PromptData, TextConfig
from ...common.errors import DataError, Fault
from .files.columnar_files import without_padding
from .files.folders import files_by_split
from .files.opening import Placed, UnreadableRecord
from .files.registry import Readers, ending_of

if TYPE_CHECKING:
    from datasets import Dataset

TEXT = ".txt"
SETTINGS = ("instruction", "input", "output", "messages", "system", "tools", "choices")
"""Settings of a data set that name columns."""
_SPLIT = re.compile(r"(?P<name>[^\[\]+]+)(?P<part>\[[^\[\]]*\])?")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Table:
    """The records of a data set by column, with the place of each."""

    names: tuple[str, ...]
    """All columns, of any record, also those that are not kept."""
    columns: Mapping[str, Sequence[Any]]
    """Of those that were asked for; None where a record lacks one."""
    locations: Sequence[str]
    """Where each record stands, such as "line 7 of prompts.jsonl"."""

    def __len__(self) -> int:
        return len(self.locations)

    def column(self, name: str | None, key: str, path: str, may_lack: str | None = None) -> Sequence[Any]:
        """One column; None for each record if there is none. `key` is the setting that names it.

        A column called `may_lack`, its default name, may be absent; any other must exist, else DataError.
        """
        if name is not None and name in self.columns:
            return self.columns[name]
        if name is None or name == may_lack:
            return [None] * len(self)
        close = difflib.get_close_matches(name, self.names, 1)
        raise DataError(
            Fault(
                key,
                name,
                f": {path} has no such column; it has {', '.join(self.names)}",
                f"did you mean {close[0]}?" if close else f"set {key} to one of them",
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """A data set as read, with the settings that say what its columns mean."""

    table: Table
    source: PromptData
    key: str
    """The setting that names it, such as data.train."""

    def __len__(self) -> int:
        return len(self.table)

    def column(self, setting: str, may_lack: str | None = None) -> Sequence[Any]:
        """The column that `setting` of the data set names; see `Table.column`."""
        name, key = getattr(self.source, setting), f"{self.key}.{setting}"
        return self.table.column(name, key, self.source.path, may_lack)

    def place(self, number: int) -> str:
        """Where record `number` (from 0) stands."""
        return self.table.locations[number]

    def fault(self, setting: str, reason: str, fix: str) -> Fault:
        """What is wrong with the column that `setting` names."""
        return Fault(f"{self.key}.{setting}", getattr(self.source, setting), f": {reason}", fix)


def read_rows(source: PromptData, key: str, plugins: Sequence[str] = ()) -> Rows:
    """Read the data set that the setting `key` names. Raises DataError as `read_table` does."""
    wanted = {getattr(source, setting, None) for setting in SETTINGS} - {None}
    return Rows(table=read_table(source, key, wanted, plugins), source=source, key=key)


def read_table(
    source: PromptData | TextConfig, key: str, wanted: Collection[str | None], plugins: Sequence[str] = ()
) -> Table:
    """The `wanted` columns of a data set; `key` is the setting that names it.

    Raises DataError, with file, place, reason and way out, if it is not there, cannot be read, or has no
    records.
    """
    path, readers = source.path, Readers(plugins)
    if isinstance(source, PromptData) and ending_of(path) == TEXT:
        raise DataError(_unknown_kind(path, key, readers))
    split = _SPLIT.fullmatch(source.split)
    if split is None:
        reason, fix = "is not one split", "name one, or a part of one such as train[:200]"
        raise DataError(Fault(f"{key}.split", source.split, reason, fix))
    if _is_on_hub(source, readers):
        return _read_hub(source, key, wanted)
    table = _read_files(_files(path, split["name"], key, readers), source, key, wanted, readers)
    if not len(table):
        raise DataError(Fault(f"{key}.path", path, "has no records", "give a file with at least one"))
    if split["part"]:
        table = _first(table, _part(split["name"], split["part"], len(table), key))
    return table if source.limit is None else _first(table, range(min(source.limit, len(table))))


def read_documents(text: TextConfig, plugins: Sequence[str] = ()) -> list[str]:
    """The documents of plain text: a .txt file is one, every record of other files is one."""
    column, key = text.column, "text.column"
    if ending_of(text.path) == TEXT:
        column = "text"
    table = read_table(text, "text", [column], plugins)
    found = table.column(column, key, text.path)
    for number, document in enumerate(found):
        if document is not None and not isinstance(document, str):
            reason = f": {table.locations[number]} holds {document!r}, not text"
            raise DataError(Fault(key, column, reason, "remove the record or name another column"))
    return [document for document in found if document and document.strip()]


@dataclass(slots=True)
class _Columns:
    """Columns that grow record by record."""

    wanted: Collection[str | None]
    names: dict[str, None] = field(default_factory=dict)
    columns: dict[str, list[Any]] = field(default_factory=dict)
    locations: list[str] = field(default_factory=list)

    def add(self, place: str, record: Mapping[str, Any]) -> None:
        for name, value in record.items():
            if name not in self.names:
                self.names[name] = None
                if name in self.wanted:
                    self.columns[name] = [None] * len(self.locations)
            if name in self.columns:
                self.columns[name].append(value)
        self.locations.append(place)
        for column in self.columns.values():
            if len(column) < len(self.locations):
                column.append(None)

    def table(self) -> Table:
        return Table(names=tuple(self.names), columns=self.columns, locations=self.locations)


def _read_files(
    files: Sequence[Path], source: PromptData | TextConfig, key: str, wanted: Collection[str | None],
    readers: Readers,
) -> Table:  # fmt: skip
    # A part of a split is taken when its length is known; a limit alone ends the reading.
    limit = None if "[" in source.split else source.limit
    found = _Columns(wanted)
    for file in files:
        read = readers.of(file)
        assert read is not None, "files are those that a reader takes"
        try:
            records = _named_locations(read(file, source.split.partition("[")[0]), file)
            for place, record in islice(records, None if limit is None else limit - len(found.locations)):
                found.add(place, record)
        except UnreadableRecord as error:
            also = f"{error.place} of {file.name}" if error.place else file.name
            raise DataError(
                Fault(f"{key}.path", source.path, f": {also} {error.reason}", error.fix)
            ) from error
        except (OSError, EOFError, ValueError) as error:
            reason = f": {file.name} cannot be read: {error or type(error).__name__}"
            raise DataError(
                Fault(f"{key}.path", source.path, reason, "give a whole file of its kind")
            ) from error
        if limit is not None and len(found.locations) >= limit:
            break
    return found.table()


def _named_locations(records: Iterable[Placed], file: Path) -> Iterator[Placed]:
    for place, record in records:
        yield f"{place} of {file.name}", record


def _first(table: Table, rows: range) -> Table:
    """Some consecutive records of a table."""
    part = slice(rows.start, rows.stop)
    columns = {name: column[part] for name, column in table.columns.items()}
    return Table(names=table.names, columns=columns, locations=table.locations[part])


def _part(split: str, part: str, count: int, key: str) -> range:
    """The records that train[:200] or train[10%:20%] means."""
    from datasets import ReadInstruction

    try:
        (found,) = ReadInstruction.from_spec(split + part).to_absolute({split: count})
    except (ValueError, AssertionError) as error:
        reason = f"cannot be taken of {count} records: {error}"
        raise DataError(Fault(f"{key}.split", split + part, reason, "write it as train[:200]")) from error
    rows = range(found.from_ or 0, count if found.to is None else found.to)
    if not len(rows):
        raise DataError(Fault(f"{key}.split", split + part, f"is none of {count} records", "take others"))
    return rows


def _files(path: str, split: str, key: str, readers: Readers) -> list[Path]:
    """The files of a split. Raises DataError where there are none, or it is not clear which they are."""
    if not Path(path).is_dir():
        _check_file(path, f"{key}.path")
        if readers.of(path) is None:
            raise DataError(_unknown_kind(path, key, readers))
        if ending_of(path) != ".json" and split != "train":
            reason, fix = f"is not in {path}: a file is the split train", "leave it out, or name a folder"
            raise DataError(Fault(f"{key}.split", split, reason, fix, also=(f"{key}.path",)))
        return [Path(path)]
    splits, unknown = files_by_split(Path(path), readers)
    if unknown:
        named = ", ".join(str(file.relative_to(path)) for file in unknown[:3])
        reason = f"holds {named}, which no reader takes"
        raise DataError(
            Fault(f"{key}.path", path, reason, f"take it out; known are {', '.join(readers.endings)}")
        )
    if not splits:
        raise DataError(
            Fault(f"{key}.path", path, "holds no files", f"known are {', '.join(readers.endings)}")
        )
    if split in splits:
        if rest := splits.get(""):
            reason = (
                f"holds {rest[0].relative_to(path)}, whose name says no split, beside files that say theirs"
            )
            raise DataError(Fault(f"{key}.path", path, reason, "name every file by its split, or none"))
        return splits[split]
    have = ", ".join(name for name in splits if name)
    reason = f"is not in {path}, which has {have}"
    raise DataError(
        Fault(f"{key}.split", split, reason, f"set {key}.split to one of them", also=(f"{key}.path",))
    )


def _unknown_kind(path: str, key: str, readers: Readers) -> Fault:
    known = ", ".join(ending for ending in readers.endings if ending != TEXT)
    return Fault(f"{key}.path", path, "is not of a known kind", f"known are {known}, also with .gz or .zst")


def _is_on_hub(source: PromptData | TextConfig, readers: Readers) -> bool:
    """Whether this is a name on the hub, or a folder that was downloaded from there and is read as such."""
    path = Path(source.path)
    if path.is_dir():
        return source.subset is not None or _is_hub_copy(path)
    return readers.of(path) is None and not _is_local(source.path)


def _is_hub_copy(folder: Path) -> bool:
    """Whether this is a downloaded data set of the hub whose card says which files are which."""
    card = folder / "README.md"
    if not card.is_file():
        return False
    head = card.read_text(encoding="utf-8", errors="replace")
    return head.startswith("---") and "\nconfigs:" in head.split("\n---", 1)[0]


def _is_local(path: str) -> bool:
    return path.startswith((".", "/", "~")) or path.count("/") > 1


def _check_file(path: str, key: str) -> None:
    file = Path(path)
    if file.is_file():
        if file.stat().st_size == 0:
            raise DataError(Fault(key, path, "is empty", "give a file with at least one record"))
        return
    neighbours = [p.name for p in file.parent.iterdir() if p.is_file()] if file.parent.is_dir() else []
    close = difflib.get_close_matches(file.name, neighbours, 3)
    hint = f"beside it are {', '.join(close)}" if close else "relative paths start at the run file's folder"
    raise DataError(Fault(key, path, "is a file that does not exist", hint))


def _read_hub(source: PromptData | TextConfig, key: str, wanted: Collection[str | None]) -> Table:
    import datasets
    from datasets.exceptions import DatasetsError

    path, split = source.path, source.split
    try:
        with _no_progress_bars():
            rows: Dataset = datasets.load_dataset(path, source.subset, split=split)
    except (OSError, ValueError, StopIteration, DatasetsError) as error:
        reason = str(error.__cause__ or error) or "it holds no records"
        raise DataError(
            Fault(
                f"{key}.path",
                path,
                f"cannot be read (split {split!r}): {reason}",
                "give a .jsonl or .parquet file or the name of a data set on the hub",
                also=(f"{key}.split",),
            )
        ) from error
    if not len(rows):
        raise DataError(Fault(f"{key}.path", path, "has no records", "give a data set with at least one"))
    if source.limit is not None:
        rows = rows.select(range(min(source.limit, len(rows))))
    columns = {
        name: [without_padding(value) for value in rows[name][:]]
        for name in rows.column_names
        if name in wanted
    }
    locations = [f"row {number}" for number in range(1, len(rows) + 1)]
    return Table(names=tuple(rows.column_names), columns=columns, locations=locations)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """No progress bars for what takes a moment; what the caller had chosen is restored."""
    import datasets

    shown = datasets.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()

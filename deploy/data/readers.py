"""Reading records: .jsonl, .json, .csv and .parquet files, folders and hub data sets, through `datasets`."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...actors.answer_files import Question
from ...common.config.data import PromptData, TextConfig
from ...common.errors import DataError, Fault
from ...common.types import Prompt

if TYPE_CHECKING:
    from datasets import Dataset

READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
TEXT = ".txt"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """A data set as read, with the settings that say what its columns mean."""

    table: Dataset
    source: PromptData
    key: str
    """The setting that names it, such as data.train."""

    def column(self, name: str, may_lack: str | None = None) -> Sequence[Any]:
        """The column that the setting `name` of the data set names; see `column_of`."""
        return column_of(
            self.table, getattr(self.source, name), f"{self.key}.{name}", self.source.path, may_lack
        )

    def fault(self, setting: str, reason: str, fix: str) -> Fault:
        """What is wrong with the column that `setting` names."""
        return Fault(f"{self.key}.{setting}", getattr(self.source, setting), f": {reason}", fix)


def read_rows(source: PromptData, key: str) -> Rows:
    """Read the data set that the setting `key` names. Raises DataError as `read_records` does."""
    table = read_records(source.path, source.split, source.subset, source.limit, key)
    return Rows(table=table, source=source, key=key)


def read_records(path: str, split: str, subset: str | None, limit: int | None, key: str) -> Dataset:
    """The rows of a data set; `key` is the setting that names it, for messages.

    Raises DataError if it is not there, cannot be read, or has no rows.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    setting, reader = f"{key}.path", READERS.get(Path(path).suffix.lower())
    try:
        with _no_progress_bars():
            if Path(path).is_dir() or not (reader or _is_local(path)):
                rows = datasets.load_dataset(path, subset, split=split)
            else:
                _check_file(path, setting)
                if reader is None:
                    known = f"known are {', '.join(READERS)}"
                    raise DataError(Fault(setting, path, "is not of a known kind", known))
                rows = datasets.load_dataset(reader, data_files=path, split=split)
    except (OSError, ValueError, StopIteration, DatasetsError) as error:
        if isinstance(error, DataError):
            raise
        reason = str(error.__cause__ or error) or "it holds no records"
        raise DataError(
            Fault(
                setting,
                path,
                f"cannot be read (split {split!r}): {reason}",
                "give a .jsonl or .parquet file or the name of a data set on the hub",
                also=(f"{key}.split",),
            )
        ) from error
    if not isinstance(rows, datasets.Dataset) or not len(rows):
        raise DataError(Fault(setting, path, "has no records", "give a file with at least one"))
    return rows if limit is None else rows.select(range(min(limit, len(rows))))


def column_of(
    rows: Dataset, column: str | None, key: str, path: str, may_lack: str | None = None
) -> Sequence[Any]:
    """One column of the rows; None for each row if there is none. `key` is the setting that names it.

    A column called `may_lack`, its default name, may be absent; any other must exist, else DataError.
    """
    if column is not None and column in rows.column_names:
        return rows[column][:]
    if column is None or column == may_lack:
        return [None] * len(rows)
    close = difflib.get_close_matches(column, rows.column_names, 1)
    raise DataError(
        Fault(
            key,
            column,
            f": {path} has no such column; it has {', '.join(rows.column_names)}",
            f"did you mean {close[0]}?" if close else f"set {key} to one of them",
        )
    )


def documents(text: TextConfig) -> list[str]:
    """The documents of plain text: a .txt file is one, every row of other data sets is one."""
    if Path(text.path).suffix.lower() == TEXT:
        _check_file(text.path, "text.path")
        try:
            found = [Path(text.path).read_text(encoding="utf-8")]
        except UnicodeDecodeError as error:
            fault = Fault("text.path", text.path, f"is not UTF-8 text: {error}", "convert it")
            raise DataError(fault) from error
    else:
        rows = read_records(text.path, text.split, text.subset, text.limit, "text")
        found = list(column_of(rows, text.column, "text.column", text.path))
    for n, document in enumerate(found):
        if document is not None and not isinstance(document, str):
            raise DataError(
                Fault(
                    "text.column",
                    text.column,
                    f": row {n} of {text.path} holds {document!r}, not text",
                    "remove the row or name another column",
                )
            )
    return [document for document in found if document and document.strip()]


def _is_local(path: str) -> bool:
    return path.startswith((".", "/", "~")) or path.count("/") > 1 or Path(path).suffix.lower() == TEXT


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


class Questions:
    """The questions of a data set as they stand in it, by the prompts that were made of them."""

    def __init__(self, rows: Rows):
        self._chats = rows.column("messages") if rows.source.messages is not None else None
        if self._chats is None:
            self._instructions = rows.column("instruction")
            self._inputs = rows.column("input", may_lack="input")

    def of(self, prompts: Sequence[Prompt]) -> dict[str, Question]:
        """Prompt id -> its question, in the order of the prompts."""
        return {prompt.id: self._row(int(prompt.id.rpartition("/")[2])) for prompt in prompts}

    def _row(self, number: int) -> dict[str, Any]:
        if self._chats is not None:
            turns = [{"role": turn["role"], "content": turn["content"]} for turn in self._chats[number]]
            return {"messages": turns[:-1] if turns[-1]["role"] == "assistant" else turns}
        further = self._inputs[number]
        return {"instruction": self._instructions[number], "input": "" if further is None else str(further)}

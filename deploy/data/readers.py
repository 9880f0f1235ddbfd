"""Reading records: .jsonl, .json, .csv and .parquet files, folders and hub data sets, through `datasets`."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.config.data import TextConfig
from ...common.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset


from ...actors.answer_files import Question
from ...common.config.data import PromptData
from ...common.types import Prompt

READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
TEXT = ".txt"


def read_records(path: str, split: str, subset: str | None, limit: int | None, key: str) -> Dataset:
    """The rows of a data set; `key` is the setting that names it, for messages.

    Raises DataError if it is not there, cannot be read, or has no rows.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    where, reader = f"{key}.path = {path}", READERS.get(Path(path).suffix.lower())
    try:
        with _quiet():
            if Path(path).is_dir() or not (reader or _is_local(path)):
                rows = datasets.load_dataset(path, subset, split=split)
            else:
                _check_file(path, where)
                if reader is None:
                    raise DataError(f"{where} is of no known kind; known are {', '.join(READERS)}")
                rows = datasets.load_dataset(reader, data_files=path, split=split)
    except (OSError, ValueError, StopIteration, DatasetsError) as fault:
        if isinstance(fault, DataError):
            raise
        reason = str(fault.__cause__ or fault) or "it holds no records"
        raise DataError(
            f"{where} cannot be read (split {split!r}): {reason}; give a .jsonl or .parquet file or the name"
            " of a data set on the hub"
        ) from fault
    if not isinstance(rows, datasets.Dataset) or not len(rows):
        raise DataError(f"{where} has no records; give a file with at least one")
    return rows if limit is None else rows.select(range(min(limit, len(rows))))


def column_of(
    rows: Dataset, column: str | None, key: str, path: str, may_lack: str | None = None
) -> Sequence[Any]:
    """One column of the rows; None for each row if there is none.

    A column called `may_lack`, its default name, may be absent; any other must exist, else DataError.
    """
    if column is not None and column in rows.column_names:
        return rows[column][:]
    if column is None or column == may_lack:
        return [None] * len(rows)
    close = difflib.get_close_matches(column, rows.column_names, 1)
    hint = f"did you mean {close[0]}?" if close else f"set {key} to one of them"
    raise DataError(
        f"{key} = {column}: {path} has no such column; it has {', '.join(rows.column_names)}; {hint}"
    )


def documents(text: TextConfig) -> list[str]:
    """The documents of plain text: a .txt file is one, every row of other data sets is one."""
    where = f"text.path = {text.path}"
    if Path(text.path).suffix.lower() == TEXT:
        _check_file(text.path, where)
        try:
            found = [Path(text.path).read_text(encoding="utf-8")]
        except UnicodeDecodeError as fault:
            raise DataError(f"{where} is not UTF-8 text: {fault}; convert it") from fault
    else:
        rows = read_records(text.path, text.split, text.subset, text.limit, "text")
        found = list(column_of(rows, text.column, "text.column", text.path))
    for n, document in enumerate(found):
        if document is not None and not isinstance(document, str):
            raise DataError(
                f"text.column = {text.column}: row {n} of {text.path} holds {document!r}, not text"
            )
    return [document for document in found if document and document.strip()]


def _is_local(path: str) -> bool:
    return path.startswith((".", "/", "~")) or path.count("/") > 1 or Path(path).suffix.lower() == TEXT


def _check_file(path: str, where: str) -> None:
    file = Path(path)
    if file.is_file():
        if file.stat().st_size == 0:
            raise DataError(f"{where} is empty; give a file with at least one record")
        return
    neighbours = [p.name for p in file.parent.iterdir() if p.is_file()] if file.parent.is_dir() else []
    close = difflib.get_close_matches(file.name, neighbours, 3)
    hint = f"beside it are {', '.join(close)}" if close else "relative paths start at the run file's folder"
    raise DataError(f"{where}: there is no such file; {hint}")


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars for what takes a moment; the caller's wish is restored."""
    import datasets

    shown = datasets.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


class Questions:
    """Rows of data.train, by the prompts that were made of them."""

    def __init__(self, source: PromptData):
        key, path = "data.train", source.path
        rows = read_records(path, source.split, source.subset, source.limit, key)
        self._chats = None
        if source.messages is not None:
            self._chats = column_of(rows, source.messages, f"{key}.messages", path)
            return
        self._instructions = column_of(rows, source.instruction, f"{key}.instruction", path)
        self._inputs = column_of(rows, source.input, f"{key}.input", path, may_lack="input")

    def of(self, prompts: Sequence[Prompt]) -> dict[str, Question]:
        """Prompt id -> its question, in the order of the prompts."""
        return {prompt.id: self._row(int(prompt.id.rpartition("/")[2])) for prompt in prompts}

    def _row(self, number: int) -> dict[str, Any]:
        if self._chats is not None:
            turns = [{"role": turn["role"], "content": turn["content"]} for turn in self._chats[number]]
            return {"messages": turns[:-1] if turns[-1]["role"] == "assistant" else turns}
        further = self._inputs[number]
        return {"instruction": self._instructions[number], "input": "" if further is None else str(further)}

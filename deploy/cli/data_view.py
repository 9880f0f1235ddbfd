"""What `minillm data` shows of a data set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TextIO

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..data.view import DataView, ShownRecord

MOST_IDS = 400
"""Characters of a list of ids that are shown; --json has all."""
MOST_TEXT = 4000
"""Characters of a prompt or an answer that are shown."""


def render_data(view: DataView, head: int) -> RenderableType:
    """The first records, what is dropped and why, and how long prompts and answers are."""
    return Group(*_parts(view, head))


def write_json(view: DataView, head: int | None, out: TextIO) -> None:
    """One JSON object for each record, on a line of its own."""
    for record in view.records[:head]:
        out.write(json.dumps(record.as_json(), ensure_ascii=False) + "\n")


def _parts(view: DataView, head: int) -> Iterator[RenderableType]:
    for record in view.records[:head]:
        yield _record(record, view.is_trained)
    yield Text(f"data.{view.split} ({view.path}): {len(view.records):,} used, {len(view.dropped):,} dropped")
    yield _lengths(view)
    reasons: dict[str, list[str]] = {}
    for drop in view.dropped:
        reasons.setdefault(drop.reason, []).append(f"{drop.prompt_id}: {drop.detail}")
    for reason, which in reasons.items():
        yield Text(f"dropped, {reason}: {len(which)}, such as {which[0]}", style="yellow")
    for note in view.notes:
        yield Text(f"note: {note}", style="yellow")


def _record(record: ShownRecord, is_trained: bool) -> RenderableType:
    said = Text(_cut(record.prompt, MOST_TEXT), style="dim")
    lines: list[Text] = [said]
    if record.answer is not None:
        said.append(_cut(record.answer, MOST_TEXT), style="not dim bold green" if is_trained else "not dim")
    lines.append(Text(f"\nprompt ids ({len(record.prompt_ids)}, not trained): {_ids(record.prompt_ids)}"))
    if record.answer_ids is not None:
        how = "trained" if is_trained else "not trained: the run samples its answers"
        lines.append(Text(f"answer ids ({len(record.answer_ids)}, {how}): {_ids(record.answer_ids)}"))
    lines += [Text(f"reference: {_cut(one, MOST_TEXT)}") for one in record.references]
    return Panel(Group(*lines), title=record.id, title_align="left")


def _lengths(view: DataView) -> Table:
    table = Table("tokens of")
    lengths = view.lengths()
    for name in next(iter(lengths.values())):
        table.add_column(name, justify="right")
    for part, quantiles in lengths.items():
        table.add_row(part, *(f"{tokens:,}" for tokens in quantiles.values()))
    return table


def _ids(ids: list[int]) -> str:
    return _cut(" ".join(map(str, ids)), MOST_IDS)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]} ... ({len(text) - most:,} more characters)"

"""The files that answers are kept in: Parquet tables, and JSON Lines in parts that become one file.

A part holds the answers to consecutive questions and says in its name which: part-0000000-0000063.jsonl.
It is there as a whole or not at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..common.process import write_atomically

Question = Mapping[str, Any]
"""What a record asked: `instruction` and `input` (and `system`, if it has its own), or `messages` without the
answer (and `tools`, if any)."""
ANSWERS = "answers.jsonl"
PARTS = "parts"
_NAME = re.compile(r"part-(\d+)-(\d+)\.jsonl")

_LOGPROBS = pa.list_(pa.float32())
SET_SCHEMA = pa.schema(
    [
        pa.field("set", pa.int32()),
        pa.field("prompt_id", pa.string()),
        pa.field("sample", pa.int32()),
        pa.field("prompt", pa.string()),
        pa.field("answer", pa.string()),
        pa.field("finish", pa.string()),
        pa.field("oldest", pa.int64()),
        pa.field("newest", pa.int64()),
        pa.field("prompt_ids", pa.list_(pa.int32())),
        pa.field("answer_ids", pa.list_(pa.int32())),
        pa.field("behaviour_logprobs", _LOGPROBS),
        pa.field("student_logprobs", _LOGPROBS),
        pa.field("mixed_teacher_logprobs", _LOGPROBS),
        pa.field("teacher_logprobs", _LOGPROBS),
        pa.field("weights", _LOGPROBS),
    ]
)
"""Columns of a set of rollouts: log-probs in nats, one per answer token; weights = q / p~."""

ANSWERS_SCHEMA = pa.schema(
    [
        pa.field("prompt_id", pa.string()),
        pa.field("seed", pa.int32()),
        pa.field("prompt", pa.string()),
        pa.field("answer", pa.string()),
        pa.field("references", pa.list_(pa.string())),
        pa.field("rouge_l", pa.float64()),
        pa.field("exact_match", pa.float64()),
        pa.field("accuracy", pa.float64()),
        pa.field("tokens", pa.int32()),
        pa.field("finish", pa.string()),
        pa.field("answer_ids", pa.list_(pa.int32())),
    ]
)
"""Columns of the scored answers of an evaluation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """What one file of answers was made from."""

    answers: int
    """All that were drawn."""
    tokens: int
    cut: int
    """Those that the limit of their length ended."""
    empty: int
    """Those that ended before they said anything."""
    written: int


def write_table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema, file: Path) -> None:
    """Write rows as Parquet."""
    with write_atomically(file) as unfinished:
        pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), unfinished)


def write_part(folder: Path, first: int, count: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the answers to `count` questions from number `first` on as one part."""
    target = folder / PARTS / f"part-{first:07d}-{first + count - 1:07d}.jsonl"
    with write_atomically(target) as unfinished, unfinished.open("w", encoding="utf-8") as lines:
        for row in rows:
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")


def answered(folder: Path) -> set[int]:
    """Numbers of the questions whose answers are in whole parts."""
    return {number for _, first, last in _parts(folder) for number in range(first, last + 1)}


def join(folder: Path, *, keep_cut: bool) -> Joined:
    """Write answers.jsonl from all parts, in the order of the questions; without `keep_cut` no cut answer."""
    answers = tokens = cut = empty = written = 0
    with write_atomically(folder / ANSWERS) as unfinished, unfinished.open("w", encoding="utf-8") as lines:
        for path, _, _ in sorted(_parts(folder), key=lambda part: part[1]):
            with path.open(encoding="utf-8") as part:
                for line in part:
                    row = json.loads(line)
                    was_cut = row["finish"] == "length"
                    answers, tokens, cut = answers + 1, tokens + row["tokens"], cut + was_cut
                    text = row["messages"][-1]["content"] if "messages" in row else row["output"]
                    empty += not text.strip()
                    if keep_cut or not was_cut:
                        lines.write(line)
                        written += 1
    return Joined(answers=answers, tokens=tokens, cut=cut, empty=empty, written=written)


def _parts(folder: Path) -> Iterator[tuple[Path, int, int]]:
    for path in (folder / PARTS).glob("part-*.jsonl"):
        if found := _NAME.fullmatch(path.name):
            yield path, int(found[1]), int(found[2])

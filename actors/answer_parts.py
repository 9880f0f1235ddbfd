"""Answers to a data set's questions as JSON Lines: parts that are whole or not there, then one file.

A part holds the answers to consecutive questions and says in its name which: part-0000000-0000063.jsonl.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.types import Rollout
from .text_sink import Decodes

Question = Mapping[str, Any]
"""What a row of the data set asked: `instruction` and `input`, or `messages` without the answer."""
ANSWERS = "answers.jsonl"
PARTS = "parts"
_NAME = re.compile(r"part-(\d+)-(\d+)\.jsonl")


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


class PartsWriter:
    """Turns answers into text and keeps them as parts below `folder`."""

    def __init__(self, tokenizer: Decodes, folder: Path):
        self._tokenizer = tokenizer
        self._folder = folder

    def write(self, first: int, questions: Mapping[str, Question], rollouts: Sequence[Rollout]) -> int:
        """Keep the answers to questions number `first` and those that follow it; returns how many."""
        parts = self._folder / PARTS
        parts.mkdir(parents=True, exist_ok=True)
        target = parts / f"part-{first:07d}-{first + len(questions) - 1:07d}.jsonl"
        unfinished = target.with_suffix(".partial")
        with unfinished.open("w", encoding="utf-8") as lines:
            for rollout in rollouts:
                row = self._row(questions[rollout.prompt_id], rollout)
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
        unfinished.replace(target)
        return len(rollouts)

    def _row(self, question: Question, rollout: Rollout) -> dict[str, Any]:
        # Not stripped: what is learned from these answers is what was drawn.
        text = str(self._tokenizer.decode(rollout.answer_ids.tolist(), skip_special_tokens=True))
        if "messages" in question:
            row = {"messages": [*question["messages"], {"role": "assistant", "content": text}]}
        else:
            row = {"instruction": question["instruction"], "input": question["input"], "output": text}
        return row | {
            "prompt_id": rollout.prompt_id,
            "sample": rollout.sample,
            "tokens": len(rollout.answer_ids),
            "finish": rollout.finish,
        }


def answered(folder: Path) -> set[int]:
    """Numbers of the questions whose answers are in whole parts."""
    return {number for _, first, last in _parts(folder) for number in range(first, last + 1)}


def join(folder: Path, *, keep_cut: bool) -> Joined:
    """Write answers.jsonl from all parts, in the order of the questions; without `keep_cut` no cut answer."""
    answers = tokens = cut = empty = written = 0
    unfinished = folder / f"{ANSWERS}.partial"
    with unfinished.open("w", encoding="utf-8") as lines:
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
    unfinished.replace(folder / ANSWERS)
    return Joined(answers=answers, tokens=tokens, cut=cut, empty=empty, written=written)


def _parts(folder: Path) -> Iterator[tuple[Path, int, int]]:
    for path in (folder / PARTS).glob("part-*.jsonl"):
        if found := _NAME.fullmatch(path.name):
            yield path, int(found[1]), int(found[2])

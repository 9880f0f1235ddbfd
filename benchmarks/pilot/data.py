"""The pilot's data: Dolly's short records with label-word tasks among them, and stories a teacher told."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...common.errors import DataError
from ...deploy.models.convert import cut_model
from ..recipes import stories
from ..recipes.label_words import sst2

MOST_WORDS = 24
"""Of an answer, so that it fits into 48 tokens of a small vocabulary."""
TEST, VALIDATION = 200, 64
"""Records held out for the evaluation, and to follow each run while it trains."""
LABEL_TASKS, LABEL_TEST = 1500, 200
"""Film reviews that join the training data, and film reviews to choose labels for."""


def prepare_dolly(shared: Path, out: Path) -> list[Path]:
    """Write train, validation, test, labels and dolly.jsonl; returns the files of plain text."""
    records = [json.loads(line) for line in _lines(shared / "dolly" / "train_short.jsonl")]
    # Methods must see the same prompts, so what given answers would be dropped for is left out for all.
    records = [r for r in records if len(r["output"].split()) <= MOST_WORDS]
    test, validation, train = _parts(records)
    reviews = list(sst2(shared / "calibration" / "train.tsv"))[:LABEL_TASKS]
    mixed = [*train, *reviews]
    random.Random(0).shuffle(mixed)
    _write(out / "test.jsonl", test)
    _write(out / "validation.jsonl", validation)
    _write(out / "train.jsonl", mixed)
    _write(out / "labels.jsonl", list(sst2(shared / "calibration" / "dev.tsv"))[:LABEL_TEST])
    text = out / "dolly.jsonl"
    _write(text, [{"text": f"{r['instruction']}\n{r['input']}\n{r['output']}".strip()} for r in train])
    corpus = shared / "corpus"
    return [corpus / "wikitext2_valid.txt", corpus / "wiki_demo.txt", corpus / "c4_demo.jsonl", text]


def prepare_stories(shared: Path, out: Path) -> Path:
    """Write train, validation and test.jsonl and a student of one layer; returns the teacher's folder."""
    teacher = shared / "models" / "stories260K"
    told = [{"instruction": first, "output": rest} for first, rest in stories.tell(teacher)]
    for name, part in zip(("test", "validation", "train"), _parts(told), strict=True):
        _write(out / f"{name}.jsonl", part)
    cut_model(teacher, 1, out / "cut")
    return teacher


def _parts(records: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    return records[:TEST], records[TEST : TEST + VALIDATION], records[TEST + VALIDATION :]


def _lines(file: Path) -> list[str]:
    if not file.exists():
        raise DataError(f"{file} is not there; name the folder of shared data with --shared")
    return file.read_text(encoding="utf-8").splitlines()


def _write(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    keys = ("instruction", "input", "output", "choices", "text")
    kept = ({key: row[key] for key in keys if key in row} for row in rows)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
    if not file.exists() or file.read_text(encoding="utf-8") != text:  # its time tells whether it is new
        file.write_text(text, encoding="utf-8")

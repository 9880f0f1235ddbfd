"""Classification sets as data that `minillm eval` scores by label words: SST-2 and BoolQ, zero-shot.

    python -m minillm_ray.benchmarks.recipes.label_words sst2 dev.tsv sst2.jsonl
    python -m minillm_ray.benchmarks.recipes.label_words boolq dev.jsonl boolq.jsonl

sst2 is a table with a sentence and 0 or 1 in each line, boolq JSON Lines with question, passage and label (or
answer). Each row out has `instruction`, `input`, `output` and `choices`.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from ...common.errors import DataError

Row = dict[str, object]


def sst2(file: Path) -> Iterator[Row]:
    """Film reviews, positive or negative."""
    words = ["negative", "positive"]
    with file.open(encoding="utf-8", newline="") as lines:
        for number, fields in enumerate(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE), 1):
            if number == 1 and fields[-1] == "label":
                continue
            if len(fields) != 2 or fields[1] not in ("0", "1"):
                raise DataError(f"{file}, line {number}: {fields} is no sentence with 0 or 1 behind a tab")
            yield {
                "instruction": "Is this film review positive or negative? Answer with one word.",
                "input": fields[0].strip(),
                "output": words[int(fields[1])],
                "choices": words,
            }


def boolq(file: Path) -> Iterator[Row]:
    """Questions about a passage, yes or no."""
    words = ["no", "yes"]
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        row = json.loads(line)
        label = row.get("label", row.get("answer"))
        if label not in (0, 1):
            raise DataError(f"{file}, line {number}: label = {label!r}; it must be true, false, 0 or 1")
        yield {
            "instruction": f"Read the passage and answer yes or no: {row['question'].rstrip('?')}?",
            "input": row["passage"],
            "output": words[int(label)],
            "choices": words,
        }


SETS: dict[str, Callable[[Path], Iterator[Row]]] = {"sst2": sst2, "boolq": boolq}


def main(name: str, source: Path, target: Path) -> int:
    """Convert a file; returns the number of rows written."""
    if name not in SETS:
        raise DataError(f"{name} is no set that is known; known are {', '.join(SETS)}")
    rows = list(SETS[name](source))
    target.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return len(rows)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))

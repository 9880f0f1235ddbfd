"""Reading a large data set, ours against a bare loop: seconds, and memory above that at rest.

    python -m minillm_ray.benchmarks.data_reading {ours,bare} FILE MODEL

reads FILE once in this process and prints what it took.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from ..common.process import peak_resident
from .ground import Values

ROWS = 200_000
WORDS = 12
"""Words of an instruction: the file has 24 MiB."""
LONG = 25_000_000
"""Characters of the one record of the second file."""


def data_reading(out: Path, model: Path) -> Values:
    """Of both ways the seconds and bytes for many records, and of ours the seconds for a long one."""
    out.mkdir(parents=True, exist_ok=True)
    many, long = out / "many.jsonl", out / "long.jsonl"
    if not many.exists():
        write_rows(many, ROWS)
    row = {"instruction": "Say it. ", "input": "", "output": "yes"}
    text = "say it once more, " * (LONG // 18)
    long.write_text("".join(json.dumps(one) + "\n" for one in (row, row | {"instruction": text})))
    found = {way: _of(way, many, model) for way in ("bare", "ours")}
    return found | {"long": _of("ours", long, model), "bytes": many.stat().st_size}


def write_rows(path: Path, count: int) -> None:
    """Instructions of random words, some with further input, with answers."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 9))) for _ in range(5000)]

    def text(most: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(1, most)))

    with path.open("w", encoding="utf-8") as lines:
        for n in range(count):
            further = text(4) if n % 4 == 0 else ""
            lines.write(json.dumps({"instruction": text(WORDS), "input": further, "output": text(6)}) + "\n")


def _of(way: str, file: Path, model: Path) -> Values:
    command = [sys.executable, "-m", f"{__package__}.data_reading", way, str(file), str(model)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _measure(way: str, file: Path, model: str) -> Values:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    if way == "ours":
        from ..common.config.run import RunConfig
        from ..deploy.data.load import load_run_data

        sections: dict[str, Any] = {"student": {"path": model}, "teacher": {"path": model}}
        config = RunConfig.model_validate(sections | {"data": {"train": {"path": str(file)}}})

        def read() -> int:
            found: list[Any] = []
            prompts = load_run_data(config, tokenizer, found).prompts
            assert not found, found
            return sum(len(prompt.token_ids) for prompt in prompts)
    else:
        import datasets  # noqa: F401  imported before the clock starts, as all else

        from .bare.read_rows import read as bare

        def read() -> int:
            return bare(file, tokenizer)

    rest, began = psutil.Process().memory_info().rss, time.perf_counter()
    tokens = read()
    return {"seconds": time.perf_counter() - began, "bytes": peak_resident() - rest, "tokens": tokens}


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], Path(sys.argv[2]), sys.argv[3])))

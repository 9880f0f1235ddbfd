"""What all benchmarks stand on: real models of two sizes, prompts, and what the machine has to spare."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from ..deploy.models.convert import cut_model, fetch_model

Values = dict[str, Any]
LAYERS = 10
"""Of SmolLM2's thirty that the student keeps: 63M parameters against 135M."""
MICRO_BATCH = 8
DEMO_PROMPTS = Path(__file__).parents[1] / "deploy" / "demo" / "prompts.jsonl"


@dataclass(frozen=True, slots=True)
class Cell:
    """A size of problem."""

    answers: int
    tokens: int
    sets: int
    """Rollout sets of one process; the first is not counted."""
    rounds: int
    """How often each contender has its turn. The machine is a tenth slower or faster for minutes at a time,
    so that many short turns say more than a few long ones."""


CELLS = {"small": Cell(16, 48, sets=4, rounds=4), "large": Cell(32, 128, sets=3, rounds=2)}


@dataclass(frozen=True, slots=True)
class Files:
    """What all start from."""

    student: Path
    teacher: Path
    prompts: Path


def files(out: Path) -> Files:
    """A real teacher, a student of evenly spaced layers of it, and prompts of one column; made once."""
    teacher, student, prompts = out / "smollm2", out / f"smollm2-{LAYERS}-layers", out / "prompts.jsonl"
    if not (teacher / "config.json").exists():
        fetch_model("smollm2", teacher)
    if not (student / "config.json").exists():
        cut_model(teacher, LAYERS, student)
    asked = [json.loads(line) for line in DEMO_PROMPTS.read_text(encoding="utf-8").splitlines()[:512]]
    rows = [{"instruction": f"{one['instruction']}\n{one['input']}"} for one in asked]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Files(student, teacher, prompts)


class MemoryWatch:
    """How much less memory was available on the machine, at most, than before."""

    def __enter__(self) -> MemoryWatch:
        self.most, self._before = 0, psutil.virtual_memory().available
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._preflight, daemon=True)
        self._thread.start()
        return self

    def _preflight(self) -> None:
        while not self._ended.wait(0.2):
            self.most = max(self.most, self._before - psutil.virtual_memory().available)

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

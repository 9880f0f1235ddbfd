"""One run of our whole system that shows its student every few steps, with the clock stopped meanwhile.

    python -m minillm_ray.benchmarks.quality.ours RUN.yaml EVERY

It speaks as theirs.py does: a line of JSON whenever there is a student to look at, then waits for a word,
"go" or "stop".
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from ...deploy.config.loader import load_run
from ...deploy.runtime.pool import Chunk
from ...deploy.training import launch
from ...deploy.training.driver import Driver


class Shown(Driver):
    """The driver of a run that others look at. Its clock holds all but the looking."""

    every = 1
    """Optimiser steps between two looks, rounded up to whole sets of answers."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._seconds, self._since, self._sampled = 0.0, 0.0, 0
        self._looked_at, self._enough = 0, False

    @property
    def _done(self) -> bool:
        return self._enough or super()._done

    def _measure_start(self) -> None:
        self._show_student(Path(self._config.student.path))

    def _collect_and_score(self) -> list[Chunk]:
        chunks = super()._collect_and_score()
        self._sampled += sum(sum(chunk.summary.answer_tokens) for chunk in chunks)
        return chunks

    def _validate_if_due(self) -> None:
        """Nothing to validate on; it is called when the engines hold the new weights."""
        if self._state.step // self.every > self._looked_at // self.every:
            self._seconds += time.perf_counter() - self._since
            folder = self._folder.path / "students" / f"step-{self._state.step:04d}"
            self._workers.learner.export(folder, self._streams.answer_format)
            self._show_student(folder)

    def _show_student(self, student: Path) -> None:
        step = self._looked_at = self._state.step
        line = {"step": step, "seconds": self._seconds, "tokens": self._sampled, "student": str(student)}
        print(json.dumps(line), flush=True)
        self._enough = sys.stdin.readline().strip() != "go"
        self._since = time.perf_counter()


def main() -> None:
    """Run what the file says, as `minillm train` does."""
    Shown.every = int(sys.argv[2])
    # The driver is the one place that sees a student between two sets of answers.
    launch.Driver = Shown
    launch.start_run(load_run(sys.argv[1]), Console(stderr=True))


if __name__ == "__main__":
    main()

"""The folder of a run: what lies where, and what a resumed run goes on from.

config.yaml            every setting as resolved
fingerprint.json       when it was begun, and a fingerprint of the tokens that it reads
metrics.jsonl          one line per optimiser step, and events (drops, warnings)
tensorboard/  plots/   the same as curves
rollouts/              one Parquet file per set of answers
checkpoints/step-*/    learner state and progress.json
best/  last/           students as plain Hugging Face folders
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...common.errors import ConfigError, Fault
from ...common.process import write_atomically

_STEP = re.compile(r"step-(\d{6,})")


@dataclass(slots=True, kw_only=True)
class RunState:
    """All that the driver must remember to go on as if it had never stopped."""

    step: int = 0
    tokens: int = 0
    """Answer tokens trained on, each counted as often as it was met."""
    sets: int = 0
    """Sets of answers that are behind us."""
    version: int = 0
    """Weight publications."""
    cursors: dict[str, dict[str, int]] = field(default_factory=dict)
    """Where prompts, given answers and plain text stand; see DataStreams.cursors."""
    best_step: int = 0
    best_value: float | None = None
    first_health: dict[str, float] = field(default_factory=dict)
    """Signals of the first set, which later ones are compared with."""
    before: dict[str, Any] | None = None
    """Held-out scores of the student as it started; see Measurement.to_json."""
    teacher: dict[str, Any] | None = None
    """Held-out scores of the teacher itself, where the engines hold it."""


class RunDir:
    """Paths of one run, and its checkpoints."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def best(self) -> Path:
        """The student with the best validation value."""
        return self.path / "best"

    @property
    def last(self) -> Path:
        """The student after the last step."""
        return self.path / "last"

    @property
    def rollouts(self) -> Path:
        """Parquet files, one per set."""
        return self.path / "rollouts"

    @property
    def config(self) -> Path:
        """Settings as resolved."""
        return self.path / "config.yaml"

    def refuse_to_overwrite(self) -> None:
        """A new run does not write into an old one's folder."""
        if (self.path / "metrics.jsonl").exists():
            raise ConfigError(
                Fault(
                    "output_dir",
                    self.path,
                    "holds a run already",
                    f"choose another folder (output_dir=...), resume it (`minillm resume {self.path}`), or"
                    " delete it",
                )
            )

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint after `step`."""
        return self.path / "checkpoints" / f"step-{step:06d}"

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first; progress.json is written last."""
        return [self.checkpoint(step) for step in self.checkpoint_steps()]

    def checkpoint_steps(self) -> list[int]:
        """Optimiser steps behind each complete checkpoint, the oldest first.

        Sorted as numbers: step-1000000 has more digits than the others. A folder that was set aside while
        another took its place (step-000008.old) is none.
        """
        named = [_STEP.fullmatch(p.parent.name) for p in self.path.glob("checkpoints/*/progress.json")]
        return sorted(int(found[1]) for found in named if found)

    def complete_checkpoint(self, state: RunState, keep: int) -> None:
        """Mark the checkpoint of `state.step` as whole, and delete all but the newest `keep`.

        The best student so far is part of it: a resumed run may not take one from steps that it has not made.
        """
        if self.best.exists():
            shutil.copytree(self.best, self.checkpoint(state.step) / "best", dirs_exist_ok=True)
        with write_atomically(self.checkpoint(state.step) / "progress.json") as file:
            file.write_text(json.dumps(asdict(state)), encoding="utf-8")
        for old in self.checkpoints()[:-keep]:
            shutil.rmtree(old)

    def restore_best(self, step: int) -> None:
        """Put the best student back that was the best at the checkpoint of `step`; none if there was none."""
        shutil.rmtree(self.best, ignore_errors=True)
        kept = self.checkpoint(step) / "best"
        if kept.exists():
            shutil.copytree(kept, self.best)

    def newest_state(self) -> RunState | None:
        """State of the newest whole checkpoint; None where there is none."""
        found = self.checkpoints()
        if not found:
            return None
        return RunState(**json.loads((found[-1] / "progress.json").read_text(encoding="utf-8")))

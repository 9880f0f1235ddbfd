"""The parts of an iteration by themselves: the bare loops, each in a process of its own."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from .ground import MICRO_BATCH, Cell, Files, Values

BARE = Path(__file__).parent / "bare"
PROMPT_TOKENS = 43
"""Mean of the prompts' lengths with SmolLM2's chat template around them (38 to 52)."""

ROUNDS = 2
"""Of the bare loops, each of which gives the median of its own."""
MORE_LOADS = 2
"""In each round, so that one of them finds its memory."""


def bare(script: str, *arguments: Any) -> Values:
    """What a frozen script prints."""
    command = [sys.executable, str(BARE / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{script} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def parts(cell: Cell, files: Files) -> dict[str, Values]:
    """Medians of the bare loops at the size of a cell; of loads the quickest.

    A bare load takes 0.15 s or 0.4 by chance: glibc hands it memory that it has used before, or new pages.
    """
    sizes = ("--answers", cell.answers, "--tokens", cell.tokens, "--prompt-tokens", PROMPT_TOKENS)
    calls: dict[str, tuple[Any, ...]] = {
        "peak": ("peak.py",),
        "sample_student": ("sample.py", files.student, *sizes),
        "sample_teacher": ("sample.py", files.teacher, *sizes),
        "score": ("score.py", files.teacher, *sizes, "--batch", MICRO_BATCH),
        "step": ("step.py", files.student, files.teacher, *sizes, "--micro-batch", MICRO_BATCH),
        "load": ("load.py", files.student),
    }
    found: dict[str, list[Values]] = {name: [] for name in calls}
    order = [*calls, *["load"] * MORE_LOADS]
    for _ in range(ROUNDS):
        for name in order:
            call = calls[name]
            found[name].append(bare(*call))
            print(name, found[name][-1], file=sys.stderr, flush=True)
    return {
        name: {
            key: (min if name == "load" else statistics.median)(one[key] for one in several)
            for key, value in several[0].items()
            if isinstance(value, float | int)
        }
        for name, several in found.items()
    }

"""The race: the whole system on Ray against TRL's trainers, with the same models, prompts and tokens."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from . import ours
from .ground import MICRO_BATCH, Cell, Files, MemoryWatch, Values

TRL = {"distillation": "1.16.0", "gkd": "1.16.0", "minillm": "1.14.2"}
"""Trainer -> the version of trl that has it; MiniLLMTrainer was dropped after 1.14.2."""
INNER_EPOCHS = {
    "gkd": 1, "ours_reverse_kl": 1, "distillation": 1, "minillm": 4, "ours_minillm": 4, "ours_logprobs": 1,
}  # fmt: skip
"""Contender -> optimiser steps on each set; `minillm` is the paper's setting."""
CONTENDERS = tuple(INNER_EPOCHS)
"""In an order where those who are compared run one after the other: the machine's speed drifts."""
OURS = {
    "ours_reverse_kl": "reverse_kl",
    "ours_logprobs": "reverse_kl_logprobs",
    "ours_minillm": "minillm",
}
"""Those of ours, and what they learn; `ours_logprobs` does all that the bare loops do, and meets them."""
MORE_SETS = {"ours_logprobs": 2}
"""Its parts, which meet the bare loops one by one, scatter more than whole iterations do."""
Measured = tuple[list[float], dict[str, list[float]]]
"""Seconds of each iteration that counts, and of its parts where they are known."""


def race(
    cell: Cell, files: Files, out: Path, *, ranks: int, only: Sequence[str] = CONTENDERS
) -> dict[str, Values]:
    """Each contender in a process of its own, round after round; medians, and all that was measured."""
    runs: dict[str, list[Values]] = {name: [] for name in only}
    for number in range(cell.rounds):
        for name in only:
            with MemoryWatch() as watch:
                contender = _ours if name in OURS else _theirs
                seconds, parts = contender(name, cell, files, out, ranks)
            runs[name].append({"seconds": seconds, "parts": parts, "memory_bytes": watch.most})
            print(name, number, [round(s, 2) for s in seconds], file=sys.stderr, flush=True)
    return {name: _summary(cell, INNER_EPOCHS[name], several) for name, several in runs.items()}


def _ours(name: str, cell: Cell, files: Files, out: Path, ranks: int) -> Measured:
    folder = out / "ours" / f"{name}-{cell.answers}x{cell.tokens}"
    shutil.rmtree(folder, ignore_errors=True)
    sets = cell.sets + MORE_SETS.get(name, 0)
    tree = ours.run_file(
        OURS[name], files, folder, cell, sets=sets, num_iterations=INNER_EPOCHS[name], ranks=ranks
    )
    return ours.run(tree)


def _theirs(name: str, cell: Cell, files: Files, out: Path, _: int) -> Measured:
    epochs = INNER_EPOCHS[name]
    command = [
        environment(out, TRL[name]), Path(__file__).parent / "theirs.py", name,
        files.student, files.teacher, files.prompts,
        "--answers", cell.answers, "--tokens", cell.tokens, "--micro-batch", MICRO_BATCH,
        "--num-iterations", epochs, "--steps", epochs * (cell.sets if epochs == 1 else 3),
    ]  # fmt: skip
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    steps = json.loads(done.stdout.splitlines()[-1])["seconds"]
    sets: list[float] = [sum(steps[n : n + epochs]) for n in range(0, len(steps), epochs)]
    return sets[1:], {}


def _summary(cell: Cell, epochs: int, runs: list[Values]) -> Values:
    seconds = statistics.median(one for run in runs for one in run["seconds"])
    parts = {
        part: statistics.median(value for run in runs for value in run["parts"][part])
        for part in runs[0]["parts"]
    }
    return {
        "seconds": seconds,
        "trained_tokens_per_s": epochs * cell.answers * cell.tokens / seconds,
        "memory_bytes": statistics.median(run["memory_bytes"] for run in runs),
        "parts": parts,
        "all_seconds": [run["seconds"] for run in runs],
    }


def environment(out: Path, version: str) -> Path:
    """The Python of an environment with this trl, and the torch that we have; made once."""
    import torch

    folder = out / f"trl-{version}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        wanted = [f"trl=={version}", f"torch=={torch.__version__}"]
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *wanted], check=True)
        (folder / "complete").touch()
    return python

"""One run of one contender: its settings, its process, and when its student came down to the threshold.

All have the same models, prompts, batch, optimiser and threads. `ours_minillm` is the paper's method with the
reference's preset, whose whitening centres the advantages: without it a student as small as this one learns
more slowly (docs/development/lab-notes/log.md). It has no language-model term, since the others have none.
`ours_fresh` lowers what TRL's DistillationTrainer lowers, in the same way: the exact reverse KL, on answers
drawn by the newest weights, each trained on once.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import yaml

from ..ground import Values

MAX_NEW_TOKENS = 32
BATCH_SIZE = 256
"""Answers in one optimiser step, of all contenders."""
OPTIMIZER: Values = {
    "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.0, "warmup_steps": 10,
}  # fmt: skip
"""AdamW of all contenders; behind the warm-up the rate is constant. TRL's own default is beta2 = 0.999."""
MAX_GRAD_NORM = 1.0
STEPS = 100_000
"""More than any run makes: the threshold or its time ends it."""
OWN: dict[str, Values] = {
    "ours_minillm": {
        "every": 16,
        "objective": {"kind": "minillm", "preset": "reference"},
        "rollout": {"teacher_mix": 0.2, "rollout_batch_size": 1024},
        "learner": {"num_iterations": 4},
    },
    "ours_fresh": {
        "every": 16,
        "objective": {"kind": "kd", "divergence": "reverse_kl", "sampled_share": 1.0},
        "rollout": {"teacher_mix": 0.0, "rollout_batch_size": BATCH_SIZE},
        "learner": {"num_iterations": 1},
    },
    "distillation": {"every": 16, "micro_batch_size": 128},  # the fastest of 32, 64, 128 and 256
}
"""Contender -> what it alone has, and the optimiser steps between two looks at its student."""
OURS = ("ours_minillm", "ours_fresh")
LEARNER: Values = {
    "world_size": 2, "micro_batch_size": 128, "batch_size": BATCH_SIZE, "max_steps": STEPS,
    "max_grad_norm": MAX_GRAD_NORM,
}  # fmt: skip
"""Of ours: two ranks of one thread, one micro-batch each, took half the time of one rank with two threads."""
THREADS = 2
HELD = 2
"""Looks in a row at or below the threshold that count as being there: curves go up and down."""


@dataclass(frozen=True, slots=True)
class Start:
    """What all contenders start from."""

    student: Path
    teacher: Path
    prompts: Path
    """JSON Lines of one column, `instruction`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One contender at one learning rate, with one seed."""

    name: str
    lr: float
    seed: int

    def __str__(self) -> str:
        return f"{self.name}-{self.lr:g}-{self.seed}"


def settings(entry: Entry, start: Start, out: Path) -> Values:
    """All that makes the run what it is: our run file, or what theirs.py reads."""
    own = OWN[entry.name]
    optimizer = {**OPTIMIZER, "lr": entry.lr}
    if entry.name not in OURS:
        return {
            "student": str(start.student), "teacher": str(start.teacher), "prompts": str(start.prompts),
            "out": str(out), "every": own["every"], "seed": entry.seed, "threads": THREADS, "steps": STEPS,
            "batch_size": BATCH_SIZE, "micro_batch_size": own["micro_batch_size"],
            "max_new_tokens": MAX_NEW_TOKENS,
            "clip_norm": MAX_GRAD_NORM, **optimizer,
        }  # fmt: skip
    return {
        "student": {"path": str(start.student)},
        "teacher": {"path": str(start.teacher)},
        "data": {
            "train": {"path": str(start.prompts), "input": None, "output": None},
            "template": "chat",
            "max_prompt_tokens": 64,
        },
        "objective": own["objective"],
        "rollout": {
            **own["rollout"],
            "max_new_tokens": MAX_NEW_TOKENS,
            "max_num_seqs": BATCH_SIZE,
            "chunk": BATCH_SIZE,
            "kv_cache_gib": 0.25,
        },
        "learner": {**LEARNER, **own["learner"], "optimizer": optimizer},
        "cluster": {"dashboard": False, "threads": THREADS},
        "save_steps": 10 * STEPS,
        "seed": entry.seed,
        "output_dir": str(out),
    }


def contest(
    entry: Entry, start: Start, out: Path, *, python: Path, measure: Callable[[Path], float],
    threshold: float, cap_s: float,
) -> Values:  # fmt: skip
    """Train until the student's `measure` stays at the threshold, or `cap_s` seconds of training are over.

    `python` runs theirs. The contender waits, with its clock stopped, while its student is measured.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    looks: list[Values] = []
    began, start_up = time.perf_counter(), 0.0
    with _process(_command(entry, start, out, python), out / "log.txt") as (lines, say):
        for seen in lines:
            start_up = start_up or time.perf_counter() - began
            student = Path(seen.pop("student"))
            looks.append({**seen, "reverse_kl": measure(student)})
            if student != start.student:
                shutil.rmtree(student)
            print(entry, looks[-1], file=sys.stderr, flush=True)
            late = seen["seconds"] >= cap_s and looks[-1]["reverse_kl"] > threshold
            say("stop" if late or reached(looks, threshold) else "go")
    return {"start_up_s": start_up, "looks": looks, "reached": reached(looks, threshold)}


def _command(entry: Entry, start: Start, out: Path, python: Path) -> list[str]:
    """Write the settings into `out`; the command that reads them."""
    asked, file = settings(entry, start, out / "run"), out / "settings.yaml"
    file.write_text(yaml.safe_dump(asked, sort_keys=False), encoding="utf-8")
    if entry.name not in OURS:
        return [str(python), str(Path(__file__).parent / "theirs.py"), str(file)]
    every = str(OWN[entry.name]["every"])
    return [sys.executable, "-m", f"{__package__}.ours", str(file), every]


@contextmanager
def _process(command: Sequence[str], log: Path) -> Iterator[tuple[Iterator[Values], Callable[[str], None]]]:
    """A process that prints JSON and waits for words: its lines, and how to say one."""
    with log.open("w") as errors, subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
    ) as running:  # fmt: skip
        assert running.stdin is not None
        assert running.stdout is not None
        heard, told = running.stdout, running.stdin

        def say(word: str) -> None:
            told.write(word + "\n")
            told.flush()

        yield (json.loads(line) for line in heard if line.startswith('{"step"')), say
    if running.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text()[-3000:]}")


def reached(looks: Sequence[Values], threshold: float) -> Values | None:
    """Steps, seconds and tokens at which the curve comes down to the threshold and stays for HELD looks.

    Straight lines between the looks. None = it never did.
    """
    for number, (before, after) in enumerate(pairwise(looks), 1):
        held = [seen["reverse_kl"] <= threshold for seen in looks[number : number + HELD]]
        if before["reverse_kl"] > threshold and len(held) == HELD and all(held):
            fraction = (before["reverse_kl"] - threshold) / (before["reverse_kl"] - after["reverse_kl"])
            return {key: before[key] + fraction * (after[key] - before[key]) for key in after}
    return None

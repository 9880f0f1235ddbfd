"""The demonstration: distil the shipped teacher into the shipped student, beside a control, on one machine.

The control makes the same number of optimiser steps of further fine-tuning from the same student, so that
what MiniLLM adds is seen apart from what more training adds.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path

from rich.console import Console, Group
from rich.table import Table

from ...common.config import ClusterConfig
from ...common.errors import ClusterError, ConfigError
from .. import demo as data
from ..api import train
from ..cluster import cluster
from ..data import load_prompts
from ..plots import plot_run
from ..recorder import read_metrics
from ..report import quality_table
from ..run_file import load_run
from ..train import Result

WHAT = """[bold]minillm demo[/]: distil a small teacher into a smaller student on this machine, for real.

  1. measure the student as it starts, on prompts held out from training
  2. MiniLLM: vLLM samples answers from student and teacher mixed, the teacher scores them, two learner
     ranks take the gradient, new weights go back to vLLM; {steps} optimiser steps
  3. control: the same number of steps of plain fine-tuning from the same start
  4. measure both on the held-out prompts, three seeds

It takes under ten minutes on two cores. What it makes is in [bold]{out}[/].
"""


def run_demo(out: Path, keep: bool, console: Console) -> None:
    """Run both, and leave summary.json, plots and everything else in `out`."""
    began = time.monotonic()
    if out.exists():
        if not (out / "config.yaml").exists():
            raise ConfigError(f"--out {out} exists and is no earlier demo; choose another folder")
        shutil.rmtree(out)
    with as_file(files(data)) as here, _ray(keep, console):
        base = load_run(here / "minillm.yaml", [f"out={out}"])
        control = load_run(
            here / "control.yaml", [f"out={out / 'control'}", f"learner.steps={base.learner.steps}"]
        )
        console.print(WHAT.format(out=out, steps=base.learner.steps))
        console.rule("MiniLLM")
        ours = train(base, console)
        console.rule("control: further fine-tuning")
        theirs = train(control, console)
        prompts = [p.text for p in load_prompts(base, "heldout")[:3]]
    plot_run(out / "plots", {"MiniLLM": read_metrics(out), "control": read_metrics(out / "control")})
    summary = _summary(out, ours, theirs, str(base.teacher and base.teacher.path), base.student.path)
    summary["seconds"] = round(time.monotonic() - began, 1)
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    console.rule("what came of it")
    console.print(_last_screen(out, ours, theirs, prompts, summary["seconds"]))


@contextmanager
def _ray(keep: bool, console: Console) -> Iterator[None]:
    """One local Ray for both runs; with `keep` it is started apart and outlives us."""
    if not keep:
        with cluster(ClusterConfig()) as dashboard:
            console.print(f"Ray is up, dashboard at {dashboard}")
            yield
        return
    ray = Path(sys.executable).with_name("ray")
    started = subprocess.run(
        [str(ray), "start", "--head", "--dashboard-host=127.0.0.1"],
        capture_output=True,
        text=True,
        check=False,
    )
    if started.returncode:
        raise ClusterError(f"`ray start --head` failed: {started.stderr.strip()[-500:]}")
    os.environ.pop("RAY_ADDRESS", None)
    with cluster(ClusterConfig(address="auto")) as dashboard:
        yield
    console.print(f"Ray stays up, dashboard at {dashboard}; `{ray} stop` ends it")


def _summary(out: Path, ours: Result, theirs: Result, teacher: str, student: str) -> dict[str, float | str]:
    measured = {"before": ours.before, "after": ours.after, "control": theirs.after, "teacher": ours.teacher}
    figures: dict[str, float | str] = {}
    for name, measurement in measured.items():
        assert measurement is not None, "the demo measures held-out prompts"
        if kl := measurement.reverse_kl():
            figures[f"heldout_reverse_kl_{name}"] = round(kl.mean, 4)
        if rouge := measurement.rouge_l():
            figures[f"rouge_l_{name}"] = round(rouge.mean, 3)
    return figures | {
        "teacher": teacher,
        "student_before": student,
        "student_after": str(ours.folder.best),
    }


def _last_screen(out: Path, ours: Result, theirs: Result, prompts: list[str], seconds: float) -> Group:
    models = {
        "teacher": ours.teacher,
        "student, start": ours.before,
        "control (more SFT)": theirs.after,
        "MiniLLM": ours.after,
    }
    answers = Table(title="the first held-out prompts", show_lines=True)
    answers.add_column("prompt", ratio=2)
    for name in models:
        answers.add_column(name, ratio=1)
    for index, prompt in enumerate(prompts):
        answers.add_row(prompt, *(m.examples[index] if m else "-" for m in models.values()))
    return Group(
        quality_table(models),
        answers,
        f"{seconds:.0f} s in all. Plots: {out / 'plots'}; rollouts: {out / 'rollouts'};"
        f" numbers: {out / 'summary.json'}",
        "Next:",
        "  .venv/bin/minillm fetch-model smollm2       a real model, for a run on it (README, 'A real run')",
        "  .venv/bin/minillm train --help               your own teacher, student and data",
        f"  .venv/bin/vllm serve {out / 'best'} --dtype float32     serve the student just made",
    )

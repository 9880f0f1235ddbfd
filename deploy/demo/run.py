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

from rich.console import Console

from ...common.config.run import ClusterConfig
from ...common.errors import ClusterError, ConfigError
from .. import demo as data
from ..config.loader import load_run
from ..preflight.check import check_run
from ..reporting.plots import plot_run
from ..runtime.cluster import cluster
from ..training.driver import Result
from ..training.launch import start_run
from ..training.metrics_log import read_metrics
from .last_screen import MODELS, last_screen

MARKER = ".minillm-demo"
"""Says that a folder is a demo's and may be replaced; a run's folder is never deleted."""
WHAT = """[bold]minillm demo[/]: distil a small teacher into a smaller student on this machine, for real.

  1. measure the student as it starts, on prompts held out from training
  2. MiniLLM: vLLM samples answers from student and teacher mixed, the teacher scores them, two learner
     ranks take the gradient, new weights go back to vLLM; {steps} optimiser steps
  3. control: the same number of steps of plain fine-tuning from the same start
  4. measure both on the held-out prompts, three seeds

It takes 5 to 12 minutes on two cores. What it makes is in [bold]{out}[/].
"""


def run_demo(out: Path, keep: bool, console: Console) -> None:
    """Run both, and leave summary.json, plots and everything else in `out`."""
    began = time.monotonic()
    if out.exists():
        if not (out / MARKER).exists():
            raise ConfigError(
                f"--output-dir {out} exists and is no earlier demo; choose another folder, or delete it",
                source="demo",
            )
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / MARKER).write_text("made by `minillm demo`, which may replace this folder\n", encoding="utf-8")
    with as_file(files(data)) as here, _ray(keep, console):
        base = load_run(here / "minillm.yaml").model_copy(update={"output_dir": out.resolve()})
        control = load_run(here / "control.yaml", [f"learner.max_steps={base.learner.max_steps}"]).model_copy(
            update={"output_dir": out.resolve() / "control"}
        )
        console.print(WHAT.format(out=out, steps=base.learner.max_steps))
        console.rule("MiniLLM")
        plan = check_run(base)
        ours = start_run(base, console, plan=plan)
        console.rule("control: further fine-tuning")
        theirs = start_run(control, console)
        prompts = [prompt.text for prompt in plan.data.test[:3]]
    plot_run(out / "plots", {"MiniLLM": read_metrics(out), "control": read_metrics(out / "control")})
    summary = _summary(out, ours, theirs, str(base.teacher and base.teacher.path), base.student.path)
    summary["seconds"] = round(time.monotonic() - began, 1)
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    console.rule("what came of it")
    measured = (ours.teacher, ours.before, theirs.after, ours.after)
    models = {name: m for name, m in zip(MODELS, measured, strict=True) if m is not None}
    console.print(last_screen(out, models, prompts, summary["seconds"]))


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
        start_new_session=True,  # else it ends with the terminal that the demo was started in
    )
    if started.returncode:
        raise ClusterError(f"`ray start --head` failed: {started.stderr.strip()[-500:]}")
    os.environ.pop("RAY_ADDRESS", None)
    with cluster(ClusterConfig(address="auto")) as dashboard:
        console.print(f"Ray is up and stays up, dashboard at {dashboard}; `{ray} stop` ends it")
        yield


def _summary(out: Path, ours: Result, theirs: Result, teacher: str, student: str) -> dict[str, float | str]:
    measured = {"before": ours.before, "after": ours.after, "control": theirs.after, "teacher": ours.teacher}
    figures: dict[str, float | str] = {}
    for name, measurement in measured.items():
        assert measurement is not None, "the demo measures held-out prompts"
        if kl := measurement.reverse_kl():
            figures[f"test_reverse_kl_{name}"] = round(kl.mean, 4)
        if rouge := measurement.rouge_l():
            figures[f"rouge_l_{name}"] = round(rouge.mean, 3)
    return figures | {
        "teacher": teacher,
        "student_before": student,
        "student_after": str(ours.folder.best),
    }

"""Resuming what a folder holds: a chain, answers to a data set, or a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, RenderableType

from ..cli.report import report, report_answers
from ..config.loader import CONFIG_FILE
from ..training.driver import Result
from ..training.launch import resume_run
from .chain import is_chain, load_chain
from .generate import Generated, find_existing, generate
from .runner import Done, report_chain, run_chain

Resumed = list[Done] | Generated | Result
"""What came of it: of a chain's phases, of a generation, or of a run."""


def resume_any(folder: Path, console: Console, callbacks: Sequence[object] = ()) -> Resumed:
    """Continue as if it had never stopped. Raises ConfigError for a folder that holds none of them.

    `callbacks` are for a run.
    """
    file = folder / CONFIG_FILE
    if is_chain(file):
        return run_chain(load_chain(file, [f"output_dir={json.dumps(str(folder))}"]), console)
    if asked := find_existing(folder):
        return generate(asked, console)
    return resume_run(folder, console, callbacks)


def report_resumed(found: Resumed) -> RenderableType:
    """The last screen."""
    if isinstance(found, list):
        return report_chain(found)
    return report_answers(found) if isinstance(found, Generated) else report(found)

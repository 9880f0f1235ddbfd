"""`minillm verify`: the parity check alone, before and after two weight updates, as a table."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ...common.config.run import RunConfig
from ...common.logs import driver_logs, person_sees
from ..cli.progress import Progress
from ..data.streams import DataStreams
from ..preflight.check import check_run
from ..runtime.cluster import cluster
from ..runtime.probes import Gap
from ..runtime.workers import start_workers
from .driver import Driver
from .launch import models_of, parity_of
from .metrics_log import MetricsLog
from .run_dir import RunDir

UPDATES = 2
Rounds = Mapping[str, Sequence[Gap]]
"""When -> how far each process was from what it is compared with."""


def verify_run(config: RunConfig, console: Console) -> Rounds:
    """Compare all processes of a run at its start and after each of two weight updates.

    Raises what `minillm train` would raise before its first step, but no Disagreement.
    """
    with tempfile.TemporaryDirectory(prefix="minillm-verify-") as folder:
        config = smallest(config).model_copy(update={"output_dir": Path(folder)})
        plan = check_run(config)
        streams = DataStreams.of_run(config, plan.data)
        parity, where = parity_of(config, plan), RunDir(Path(folder))
        with (
            driver_logs(where.path),
            Progress(console) as progress,
            person_sees(progress.say),
            cluster(config.cluster),
        ):
            progress.phase("reading probes")
            if note := parity.ask_referee(models_of(config), config.cluster):
                progress.say(note)
            progress.phase("starting actors")
            sizes = {"vocabulary": plan.vocabulary, "max_tokens": plan.max_tokens}
            with start_workers(config, where.rollouts, plan.tokenizer, **sizes) as workers:
                found = {"start": parity.gaps(workers.readings(parity.probes))}
                parity.forget_student()
                metrics_log = MetricsLog(where.path)
                driver = Driver(config, streams, workers, where, metrics_log, progress, None)
                for number in range(1, UPDATES + 1):
                    driver.update()
                    found[f"update {number}"] = parity.gaps(workers.readings(parity.probes))
                metrics_log.close()
        return found


def smallest(config: RunConfig) -> RunConfig:
    """The same run with sets of few short answers, each learned from in one step."""
    answers = config.learner.world_size * config.rollout.num_generations
    rollout = {"rollout_batch_size": answers, "max_new_tokens": min(32, config.rollout.max_new_tokens)}
    learner = {"batch_size": answers, "num_iterations": 1, "micro_batch_size": 1, "max_steps": UPDATES}
    return config.model_copy(
        update={
            "rollout": config.rollout.model_copy(update=rollout),
            "learner": config.learner.model_copy(update=learner),
        }
    )


def as_json(rounds: Rounds) -> list[dict[str, Any]]:
    """One row for each process and time."""
    return [
        {
            "when": when,
            "process": gap.process,
            "model": gap.model,
            "against": gap.against,
            "mean": gap.mean,
            "largest": gap.largest,
            "within": gap.within,
            "agrees": gap.agrees,
        }
        for when, gaps in rounds.items()
        for gap in gaps
    ]


def render(rounds: Rounds) -> Table:
    """The same for a person."""
    table = Table()
    for name in ("when", "process", "model", "against", "mean", "largest", "within", ""):
        table.add_column(name, no_wrap=True)
    for when, gaps in rounds.items():
        table.add_section()
        for gap in gaps:
            verdict = "agrees" if gap.agrees else "[bold red]disagrees[/]"
            numbers = f"{gap.mean:.1e}", f"{gap.largest:.1e}", f"{gap.within:.1%}"
            table.add_row(when, gap.process, gap.model, gap.against, *numbers, verdict)
    return table

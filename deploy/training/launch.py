"""From checked settings to a finished run: preflight, cluster, actors, driver, plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from ...common.config.base import Dtype
from ...common.config.run import ModelConfig, RunConfig
from ...common.errors import ConfigError, Fault
from ...common.logs import EventLog, driver_logs, person_sees
from ...common.process import ProcessFacts
from ..cli.progress import Progress, summary_of
from ..config.loader import load_run, save_resolved
from ..data.load import texts_of
from ..data.record import keep_record, refuse_other_data
from ..data.streams import DataStreams
from ..preflight.check import Plan, check_run
from ..reporting.plots import plot_run
from ..runtime.cluster import cluster
from ..runtime.parity import Parity
from ..runtime.probes import make_probes
from ..runtime.workers import start_workers
from .driver import Driver, Result
from .metrics_log import MetricsLog, drop_after, read_metrics
from .run_dir import RunDir, RunState
from .sinks import SinkContext, make_sinks

log = EventLog(__name__)


def start_run(
    config: RunConfig, console: Console, callbacks: Sequence[object] = (), plan: Plan | None = None
) -> Result:
    """Run `config` from the start. Raises MinillmError before machines are reserved where possible.

    `plan` is what `check_run` made of these settings, if they were checked already.
    """
    folder = RunDir(config.output_dir)
    folder.refuse_to_overwrite()
    return _run(config, plan or check_run(config), folder, None, console, callbacks)


def resume_run(path: Path | str, console: Console, callbacks: Sequence[object] = ()) -> Result:
    """Go on with the run in folder `path` from its newest checkpoint, as if it had never stopped."""
    folder = RunDir(Path(path))
    if not folder.config.exists():
        raise ConfigError(
            Fault("RUN_DIR", str(path), "is not the folder of a run", "name one that has a config.yaml")
        )
    config = load_run(folder.config).model_copy(update={"output_dir": folder.path.resolve()})
    return continue_run(config, console, callbacks)


def continue_run(
    config: RunConfig, console: Console, callbacks: Sequence[object] = (), plan: Plan | None = None
) -> Result:
    """Continue the run in config.output_dir by these settings; from the start if it has no checkpoint."""
    plan = plan or check_run(config)
    folder = RunDir(config.output_dir)
    state = folder.newest_state()
    if state is not None:
        fix = "bring the old data back, or start a new run in another output_dir"
        refuse_other_data(folder.path, plan.data.sets(), fix)
    if state is None:
        console.print(f"{folder.path} has no checkpoint yet (save_steps): the run starts anew")
    drop_after(folder.path, state.step if state else -1, state.sets if state else 0)
    return _run(config, plan, folder, state, console, callbacks)


def _run(
    config: RunConfig, plan: Plan, folder: RunDir, state: RunState | None, console: Console,
    callbacks: Sequence[object],
) -> Result:  # fmt: skip
    dropped = plan.data.all_dropped
    streams = DataStreams.of_run(config, plan.data)
    with driver_logs(folder.path), Progress(console) as progress, person_sees(progress.say):
        for line in [*(f"note: {note}" for note in plan.notes), *summary_of(dropped)]:
            progress.say(line)
        progress.phase("starting Ray")
        with cluster(config.cluster) as dashboard:
            if dashboard:
                progress.say(f"Ray dashboard: {dashboard}")
            save_resolved(config, folder.path)
            if state is None:
                keep_record(folder.path, plan.data.started, plan.data.sets())
            parity = parity_of(config, plan)
            progress.phase("reading probes")
            if note := parity.ask_referee(models_of(config), config.cluster):
                progress.say(note)
            progress.phase("starting actors")
            metrics_log = MetricsLog(
                folder.path, make_sinks(config.metrics_sinks, _context(config, folder, state), config.plugins)
            )
            for drop in dropped if state is None else ():  # a resumed run has told of them
                metrics_log.dropped(drop)
            try:
                with start_workers(
                    config,
                    folder.rollouts,
                    plan.tokenizer,
                    vocabulary=plan.vocabulary,
                    max_tokens=plan.max_tokens,
                ) as workers:
                    _log_workers(workers.facts, metrics_log)
                    progress.phase("comparing log-probs")
                    parity.check(workers)
                    driver = Driver(config, streams, workers, folder, metrics_log, progress, state, callbacks)
                    result = driver.run()
            finally:
                metrics_log.close()
    plot_run(folder.path / "plots", {folder.path.name: read_metrics(folder.path)})
    return result


def parity_of(config: RunConfig, plan: Plan) -> Parity:
    """The probes of a run, and their comparison."""
    facts = [one for one in (plan.student, plan.teacher) if one is not None]
    thresholds = [tokens for one in facts for tokens in one.thresholds]
    probes = make_probes(texts_of(plan.data), longest=plan.max_tokens, thresholds=thresholds)
    return Parity(probes, plan.vocabulary, config.verify)


def models_of(config: RunConfig) -> dict[str, tuple[ModelConfig, Dtype]]:
    """The models of a run as a referee reads them."""
    found: dict[str, tuple[ModelConfig, Dtype]] = {"student": (config.student, config.learner.dtype)}
    if config.teacher is not None and (config.asks_teacher or config.mixes_teacher):
        found["teacher"] = config.teacher, config.teacher_server.dtype
    return found


def _log_workers(workers: Sequence[ProcessFacts], metrics_log: MetricsLog) -> None:
    """Keep what is known of every process."""
    for facts in workers:
        log.event("worker ready", worker=asdict(facts))
        metrics_log.event("worker", **asdict(facts))


def _context(config: RunConfig, folder: RunDir, state: RunState | None) -> SinkContext:
    return SinkContext(
        output_dir=folder.path,
        run=folder.path.name,
        config=config.model_dump(mode="json"),
        resumed_at=None if state is None else state.step,
    )

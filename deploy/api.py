"""Running from Python what the command line runs.

from minillm_ray.deploy.api import load_run, train
result = train(load_run("run.yaml", ["learner.max_steps=100"]))
print(result.after.reverse_kl())
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..common.config.run import RunConfig
from ..common.errors import ConfigError
from .cli.progress import Progress
from .config.loader import load_eval, load_run, save_resolved
from .config.presets import Tuned, as_sft
from .data.streams import DataStreams
from .evaluation.runner import Evaluation, evaluate
from .preflight.check import Plan, check_run
from .reporting.plots import plot_run
from .runtime.cluster import cluster
from .runtime.workers import start_workers
from .training.driver import Driver, Result
from .training.metrics_log import Recorder, drop_after, read_metrics, summary_of
from .training.run_dir import RunFolder, State

__all__ = [
    "Evaluation",
    "Plan",
    "Result",
    "check_run",
    "evaluate",
    "load_eval",
    "load_run",
    "load_sft",
    "resume",
    "train",
]


def load_sft(path: Path | str, overrides: Sequence[str] = (), model: Tuned = "student") -> RunConfig:
    """Read a run file as one that fine-tunes `model`. Raises ConfigError as `load_run` does."""
    return load_run(path, overrides, as_sft(model))


def train(config: RunConfig, console: Console | None = None) -> Result:
    """Run `config` from the start. Raises MinillmError before machines are reserved where possible."""
    folder = RunFolder(config.output_dir)
    folder.refuse_to_overwrite()
    return _run(config, folder, None, console or Console())


def resume(path: Path | str, console: Console | None = None) -> Result:
    """Go on with the run in folder `path` from its newest checkpoint, as if it had never stopped."""
    folder = RunFolder(Path(path))
    if not folder.config.exists():
        raise ConfigError(f"{path} is not the folder of a run: it has no config.yaml; name one that has")
    return continue_run(
        load_run(folder.config).model_copy(update={"output_dir": folder.path.resolve()}), console
    )


def continue_run(config: RunConfig, console: Console | None = None) -> Result:
    """Go on with the run in config.output_dir by these settings, or begin it anew where it has no checkpoint."""
    folder = RunFolder(config.output_dir)
    console, state = console or Console(), folder.newest_state()
    if state is None:
        console.print(f"{folder.path} has no checkpoint yet (save_steps): the run starts anew")
    drop_after(folder.path, state.step if state else -1)
    return _run(config, folder, state, console)


def _run(config: RunConfig, folder: RunFolder, state: State | None, console: Console) -> Result:
    plan = check_run(config)
    with Progress(console) as progress:
        progress.phase("reading data")
        streams = DataStreams(config)
        for line in [*(f"note: {note}" for note in plan.notes), *summary_of(streams.dropped)]:
            progress.say(line)
        progress.phase("starting Ray")
        with cluster(config.cluster) as dashboard:
            if dashboard:
                progress.say(f"Ray dashboard: {dashboard}")
            save_resolved(config, folder.path)
            progress.phase("starting actors")
            recorder = Recorder(folder.path, folder.path.name, after=state.step if state else None)
            for drop in streams.dropped if state is None else ():  # a resumed run has told of them
                recorder.dropped(drop)
            try:
                with start_workers(config, plan, folder) as workers:
                    result = Driver(config, streams, workers, folder, recorder, progress, state).run()
            finally:
                recorder.close()
    plot_run(folder.path / "plots", {folder.path.name: read_metrics(folder.path)})
    return result

"""The Python face: what the command line runs, as functions. `import minillm_ray` offers all of it.

    import minillm_ray as mr

    result = mr.train({"student": {"path": "small"}, "teacher": {"path": "large"}}, data=rows)
    print(result.after.reverse_kl())

Settings may be a RunConfig (or EvalConfig), a mapping of the same shape, or the path of a YAML file. Every
function raises MinillmError, before machines are reserved where that is possible.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ..common.config.eval import EvalConfig
from ..common.config.generate import Author
from ..common.config.run import RunConfig
from .config.loader import CONFIG_FILE, load_eval
from .config.presets import Tuned, as_sft
from .config.values import RunSettings, generate_config, run_config
from .data.given import Data, write_data
from .evaluation.runner import Evaluation
from .evaluation.runner import evaluate as run_evaluation
from .pipeline.generate import Generated, refuse_other_settings
from .pipeline.generate import generate as run_generation
from .pipeline.resume import Resumed, resume_any
from .preflight.check import Plan, check_run
from .reporting.compare import Comparison
from .reporting.compare import compare as put_side_by_side
from .training.callbacks import STOP, Callback, TrainState
from .training.driver import Result
from .training.launch import start_run
from .training.run_dir import RunDir

__all__ = [
    "STOP",
    "Callback",
    "Comparison",
    "Evaluation",
    "Generated",
    "Plan",
    "Result",
    "TrainState",
    "check",
    "compare",
    "evaluate",
    "generate",
    "resume",
    "sft",
    "train",
]

EvalSettings = EvalConfig | Mapping[str, Any] | Path | str


def train(
    config: RunSettings,
    *,
    data: Data | None = None,
    callbacks: Sequence[object] = (),
    progress: bool = True,
) -> Result:
    """Distil a teacher into a student, from the start.

    `data`: rows to learn from in place of data.train.path: a `datasets.Dataset`, a list of mappings, or a
    mapping of these by split (train, validation, test). They are written into the run's folder as Parquet, so
    that `resume` needs nothing else. `callbacks`: see `Callback`. Without `progress` nothing is printed.
    """
    checked = run_config(config, data=data)
    return _start(checked, data, callbacks, progress)


def sft(
    config: RunSettings,
    *,
    model: Tuned = "student",
    data: Data | None = None,
    callbacks: Sequence[object] = (),
    progress: bool = True,
) -> Result:
    """Fine-tune the student (or the teacher) on the answers of data.train; else as `train`."""
    checked = run_config(config, as_sft(model), data=data)
    return _start(checked, data, callbacks, progress)


def resume(output_dir: Path | str, *, callbacks: Sequence[object] = (), progress: bool = True) -> Resumed:
    """Go on with what `output_dir` holds: a run (gives Result), a chain (its phases), answers (Generated).

    As if it had never stopped: from the newest checkpoint, the unfinished phase, the first missing answer.
    """
    return resume_any(Path(output_dir), _console(progress), callbacks)


def generate(
    config: RunSettings,
    *,
    output_dir: Path | str = "runs/answers",
    by: Author = "teacher",
    keep_cut: bool = False,
    data: Data | None = None,
    progress: bool = True,
) -> Generated:
    """Have the teacher (or the student) answer data.train; answers.jsonl in `output_dir` is a data set."""
    folder = Path(output_dir).expanduser().resolve()
    checked = generate_config(config, by=by, keep_cut=keep_cut, output_dir=folder, data=data)
    if data is not None:
        refuse_other_settings(checked)
        write_data(data, folder, resumes=(folder / CONFIG_FILE).exists())
    return run_generation(checked, _console(progress))


def evaluate(config: EvalSettings, *, progress: bool = True) -> Evaluation:
    """Say how well models answer, with intervals; finishes what an earlier call into the folder began."""
    if isinstance(config, Mapping):
        config = load_eval(flags=config)
    elif not isinstance(config, EvalConfig):
        config = load_eval(config)
    return run_evaluation(config, _console(progress))


def compare(
    folders: Sequence[Path | str],
    *,
    output_dir: Path | str = "runs/compare",
    labels: Sequence[str] = (),
) -> Comparison:
    """Put runs and evaluations side by side: tables, and pictures in `output_dir`."""
    return put_side_by_side([Path(folder) for folder in folders], Path(output_dir), list(labels))


def check(config: RunSettings) -> Plan:
    """What would run where, and with what memory. Raises ConfigError with all that is wrong."""
    return check_run(run_config(config))


def _start(config: RunConfig, data: Data | None, callbacks: Sequence[object], progress: bool) -> Result:
    if data is not None:
        RunDir(config.output_dir).refuse_to_overwrite()
        write_data(data, config.output_dir)
    return start_run(config, _console(progress), callbacks)


def _console(progress: bool) -> Console:
    return Console(quiet=not progress)

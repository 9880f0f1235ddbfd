"""Evaluating models: each answers each data set with several seeds, and all metrics that apply are taken.

One model at a time: its engines answer, its measurers read, and its results are kept before the next data set
begins. Answers stay in the object store; only numbers pass through here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.text import Text

from ...common.config.base import Dtype
from ...common.config.eval import METRICS, EvalConfig, plain_model
from ...common.config.run import ModelConfig
from ...common.logs import driver_logs, person_sees
from ..cli.progress import Progress, summary_of
from ..data.load import PROBED
from ..data.record import FILE, keep_record, start_time
from ..reporting.compare import Comparison, compare, render
from ..runtime.cluster import cluster
from ..runtime.parity import Parity
from ..runtime.probes import make_probes
from ..runtime.workers import EvalWorkerGroup, start_eval_workers
from .check import Candidate, check_eval
from .model_eval import ModelEval, TeacherAnswers, samples_answers
from .rows import Part, Row, comparisons_of
from .store import EvalDir, ResultStore
from .tasks import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What an evaluation found."""

    folder: EvalDir
    rows: list[Row]
    """As in results.json."""
    comparisons: list[Row]
    notes: list[str]
    """What could not be measured, and why."""
    comparison: Comparison
    """The models side by side, with pictures."""


def evaluate(
    config: EvalConfig, console: Console | None = None, plan: Sequence[Candidate] | None = None
) -> Evaluation:
    """Evaluate, or finish what an earlier call with the same settings began.

    `plan` is what `check_eval` made of these settings, if they were checked already. Raises ConfigError,
    ModelError or DataError before anything is started, where possible. What was measured stays in the folder,
    also if a later model fails.
    """
    console = console or Console()
    folder = EvalDir(config.output_dir)
    with Progress(console) as progress:
        progress.phase("checking models and data")
        candidates = check_eval(config) if plan is None else plan
        folder.open(config)
        _tell_drops(candidates, progress)
        marks = {
            (one.name, task.name): mark
            for one in candidates
            for task, mark in zip(one.tasks, one.marks, strict=True)
        }
        if not (folder.path / FILE).exists():
            keep_record(folder.path, start_time(folder.path), {})
        results = ResultStore(folder, marks, _wanted(config))
        _measure_all(config, folder, candidates, results, progress)
    parts = results.parts()
    comparisons = comparisons_of(parts)
    folder.write_comparisons(comparisons)
    return Evaluation(
        folder=folder,
        rows=results.rows(),
        comparisons=comparisons,
        notes=[f"{part.model} on {part.data}: {note}" for part in parts for note in part.notes],
        comparison=compare([folder.path], folder.plots),
    )


def report_evaluation(evaluation: Evaluation) -> Group:
    """The end of `minillm eval`: tables, what could not be measured, and where things lie."""
    folder = evaluation.folder
    return Group(
        render(evaluation.comparison),
        *(Text(f"note: {note}") for note in evaluation.notes),
        Text(f"rows {folder.results}   answers {folder.path / 'answers'}   pictures {folder.plots}"),
    )


def _wanted(config: EvalConfig) -> list[str]:
    return [metric for metric in METRICS if config.wants(metric)]


def _tell_drops(candidates: Sequence[Candidate], progress: Progress) -> None:
    for candidate in candidates:
        drops = [drop for task in candidate.tasks for drop in task.dropped]
        for line in summary_of(drops, recorded=False):
            progress.say(f"{candidate.name}: {line}")


def _measure_all(
    config: EvalConfig,
    folder: EvalDir,
    candidates: Sequence[Candidate],
    results: ResultStore,
    progress: Progress,
) -> None:
    total = sum(len(candidate.tasks) for candidate in candidates)
    if len(results):
        progress.say(f"{len(results)} of {total} pairs of model and data are here already")
    if len(results) < total:
        with (
            driver_logs(folder.path),
            person_sees(progress.say),
            cluster(config.cluster) as dashboard,
        ):
            if dashboard:
                progress.say(f"Ray dashboard: {dashboard}")
            progress.start_steps(len(results), total)
            shared = TeacherAnswers()
            missing = {
                candidate.name: [
                    (task, mark)
                    for task, mark in zip(candidate.tasks, candidate.marks, strict=True)
                    if (candidate.name, task.name) not in results
                ]
                for candidate in candidates
            }
            wanted = [candidate for candidate in candidates if missing[candidate.name]]
            parities = [_parity(config, candidate, progress) for candidate in wanted]
            with WorkerReuse(config, progress) as stage:
                for candidate, parity in zip(wanted, parities, strict=True):
                    own = missing[candidate.name]
                    for part in _measure_model(config, folder, candidate, own, shared, stage, parity):
                        results.add(part)
                        progress.step(len(results))


def _parity(config: EvalConfig, candidate: Candidate, progress: Progress) -> Parity:
    """The probes of a model, as the referee has read them, before any actor starts."""
    texts = [prompt.token_ids for task in candidate.tasks for prompt in task.prompts[:PROBED]]
    probes = make_probes(texts, longest=config.max_tokens, thresholds=candidate.facts.thresholds)
    parity = Parity(probes, candidate.vocabulary, config.verify)
    dtype = config.teacher_server.dtype
    models: dict[str, tuple[ModelConfig, Dtype]] = {"student": (plain_model(candidate.model), dtype)}
    if candidate.compares and config.teacher is not None:
        models["teacher"] = plain_model(config.teacher), dtype
    progress.phase(f"{candidate.name}: reading probes")
    if note := parity.ask_referee(models, config.cluster):
        progress.say(f"{candidate.name}: {note}")
    return parity


class WorkerReuse:
    """The actors of one model, which are used for the next one too if it has the same shape."""

    def __init__(self, config: EvalConfig, progress: Progress):
        self.progress = progress
        self._config, self._open = config, ExitStack()
        self._key: tuple[Any, ...] | None = None
        self._workers: EvalWorkerGroup | None = None

    def __enter__(self) -> WorkerReuse:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def workers(self, candidate: Candidate, *, samples: bool, reads: bool) -> EvalWorkerGroup:
        """The actors, all of this model."""
        model, vocabulary, compares = candidate.model, candidate.vocabulary, candidate.compares
        tokenizer = candidate.tokenizer
        key = candidate.facts.shape, vocabulary, samples, reads, compares
        if self._workers is not None and key == self._key:
            self.progress.phase(f"{candidate.name}: loading weights")
            self._workers.swap_model(model, tokenizer)
            return self._workers
        self._open.close()
        self._key, self._workers = None, None
        self.progress.phase(f"{candidate.name}: starting actors")
        workers = self._open.enter_context(
            start_eval_workers(
                self._config, model, tokenizer, vocabulary, samples=samples, reads=reads, compares=compares
            )
        )
        self._key, self._workers = key, workers
        return workers


def _measure_model(
    config: EvalConfig,
    folder: EvalDir,
    candidate: Candidate,
    missing: Sequence[tuple[Task, str]],
    shared: TeacherAnswers,
    stage: WorkerReuse,
    parity: Parity,
) -> Iterator[Part]:
    """Each missing part of one model, kept as soon as it is whole."""
    samples = any(samples_answers(config, task) for task, _ in missing)
    reads = candidate.compares or any(
        task.is_classification or (config.wants("lm_loss") and task.given) for task, _ in missing
    )
    workers = stage.workers(candidate, samples=samples, reads=reads)
    parity.check(workers)
    for task, mark in missing:
        kept = folder.kept(candidate.name, task.name, mark)
        # What an earlier call measured stays, and is measured with the rest.
        metrics = {*_wanted(config), *(kept.metrics if kept is not None else ())}
        whole = config.model_copy(update={"metrics": tuple(sorted(metrics))})
        part = ModelEval(
            whole, folder, candidate.name, task, workers, stage.progress, shared,
            compares=candidate.compares, vocabulary=candidate.vocabulary,
        ).run()  # fmt: skip
        folder.keep(part, mark)
        yield part

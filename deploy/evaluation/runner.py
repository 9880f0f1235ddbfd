"""Evaluating models: each answers each data set by several seeds, and every figure that can be had is taken.

One model at a time: its engines answer, its readers measure, and what came of it is kept before the next
data set begins. Answers stay in the object store; only numbers pass through here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.text import Text

from ...common.config.eval import METRICS, NEED_ANSWERS, NEED_REFERENCES, NEED_TEACHER, EvalConfig, EvalModel
from ...common.errors import ConfigError, DataError
from ..cli.progress import Progress, summary_of
from ..models.inspect import ModelFacts, describe_model, load_tokenizer, shape_of, shared_vocabulary
from ..preflight.rules import cache_faults, model_faults
from ..reporting.compare import Comparison, compare, render
from ..runtime.cluster import cluster
from ..runtime.workers import EvalWorkerGroup, start_eval_workers
from .model_eval import ModelEval, TeacherAnswers, samples_answers
from .rows import Part, Row, comparisons_of, rows_of
from .store import EvalFolder, mark_of
from .tasks import Task, load_task


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What an evaluation found."""

    folder: EvalFolder
    rows: list[Row]
    """As in results.json."""
    comparisons: list[Row]
    notes: list[str]
    """What could not be measured, and why."""
    comparison: Comparison
    """The models side by side, with pictures."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Candidate:
    """A model that was looked at and can be evaluated."""

    model: EvalModel
    name: str
    vocabulary: int
    compares: bool
    """Whether figures that need the teacher are taken."""
    tasks: tuple[Task, ...]
    marks: tuple[str, ...]


class ResultStore:
    """What is measured: kept by earlier calls, then part by part. results.json always holds all of it."""

    def __init__(self, folder: EvalFolder, candidates: Sequence[_Candidate], wanted: Sequence[str]):
        self._folder = folder
        self._asked = [(one.name, task.name) for one in candidates for task in one.tasks]
        self._parts: dict[tuple[str, str], tuple[Part, list[Row]]] = {}
        kept = [
            folder.kept(one.name, task.name, mark)
            for one in candidates
            for task, mark in zip(one.tasks, one.marks, strict=True)
        ]
        known = [part for part in kept if part is not None]
        for part in (*known, *folder.others(self._asked)):
            self._parts[part.model, part.data] = part, rows_of(part)
        # What lacks a figure is measured again; until then its rows stay.
        self._whole = {(p.model, p.data) for p in known if set(p.metrics).issuperset(wanted)}
        self._write()

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._whole

    def __len__(self) -> int:
        """Of those that were asked for."""
        return len(self._whole)

    def add(self, part: Part) -> None:
        """One more; its rows are in the results from now on, whatever comes."""
        self._parts[part.model, part.data] = part, rows_of(part)
        self._whole.add((part.model, part.data))
        self._write()

    def parts(self) -> list[Part]:
        """All of them: those that were asked for in their order, then those of earlier calls."""
        return [part for part, _ in self._in_order()]

    def rows(self) -> list[Row]:
        """As in results.json."""
        return [row for _, rows in self._in_order() for row in rows]

    def _in_order(self) -> list[tuple[Part, list[Row]]]:
        asked = [self._parts[key] for key in self._asked if key in self._parts]
        return asked + [found for key, found in self._parts.items() if key not in self._asked]

    def _write(self) -> None:
        if self._parts:
            self._folder.write(self.rows())


def evaluate(config: EvalConfig, console: Console | None = None) -> Evaluation:
    """Evaluate, or finish what an earlier call with the same settings began.

    Raises ConfigError, ModelError or DataError before anything is started, where possible. What was measured
    stays in the folder whatever happens later.
    """
    console = console or Console()
    if faults := config.faults():
        raise ConfigError(*faults, source="this evaluation")
    folder = EvalFolder(config.output_dir)
    with Progress(console) as progress:
        progress.phase("looking at models and data")
        candidates = preflight(config)
        folder.open(config)
        _tell_drops(candidates, progress)
        found = ResultStore(folder, candidates, _wanted(config))
        _measure_all(config, folder, candidates, found, progress)
    parts = found.parts()
    comparisons = comparisons_of(parts)
    folder.write_comparisons(comparisons)
    return Evaluation(
        folder=folder,
        rows=found.rows(),
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


def preflight(config: EvalConfig) -> list[_Candidate]:
    """All that can be found wrong without machines. Raises ConfigError, ModelError or DataError."""
    return [
        _preflight(config, model, name)
        for model, name in zip(config.models, config.model_names(), strict=True)
    ]


def _wanted(config: EvalConfig) -> list[str]:
    return [metric for metric in METRICS if config.wants(metric)]


def _preflight(config: EvalConfig, model: EvalModel, name: str) -> _Candidate:
    """All that can be found wrong of one model without machines."""
    key = f"models[{name}]"
    compares = any(config.wants(metric) for metric in NEED_TEACHER) and not _same(model, config.teacher)
    run = config.as_run(model, config.data[0])
    facts, tokenizer = describe_model(model, key), load_tokenizer(model, key)
    teacher = theirs = None
    if compares and config.teacher is not None:
        teacher, theirs = describe_model(config.teacher, "teacher"), load_tokenizer(config.teacher, "teacher")
    faults = model_faults(run, key, facts) + cache_faults(run, facts, teacher)
    if faults:
        raise ConfigError(*map(_in_our_words, faults), source="this evaluation")
    tasks = []
    for data, data_name in zip(config.data, config.data_names(), strict=True):
        try:
            task = load_task(config, data, data_name, model, tokenizer, _least(facts, teacher))
        except DataError as fault:
            told = str(fault).replace("data.test", f"data[{data_name}]")
            raise DataError(_in_our_words(told)) from fault
        tasks.append(task)
    _refuse_impossible(config, tasks)
    return _Candidate(
        model=model,
        name=name,
        vocabulary=shared_vocabulary(facts, teacher, tokenizer, theirs),
        compares=compares,
        tasks=tuple(tasks),
        marks=tuple(mark_of(config, model, data) for data in config.data),
    )


def _least(*models: ModelFacts | None) -> int | None:
    """Positions that all of the models have."""
    known = [facts.context for facts in models if facts is not None and facts.context is not None]
    return min(known, default=None)


def _in_our_words(fault: str) -> str:
    """What is told of a run's settings, by the names that they have in an evaluation."""
    return fault.replace("data.max_prompt_tokens", "max_prompt_tokens").replace("rollout.", "engine.")


def _same(model: EvalModel, teacher: EvalModel | None) -> bool:
    return teacher is not None and (model.path, model.revision) == (teacher.path, teacher.revision)


def _refuse_impossible(config: EvalConfig, tasks: Sequence[Task]) -> None:
    """A metric that was asked for by name must be possible on one data set at least."""
    names = ", ".join(task.name for task in tasks)
    answered = [task for task in tasks if not task.is_classification]
    for metric in config.metrics or ():
        if metric in NEED_ANSWERS and not answered:
            raise DataError(
                f"metrics = {metric} is taken from answers, and all data ({names}) have label words to choose"
                " from; set their choices to null, or leave it out"
            )
        if metric in NEED_REFERENCES and not any(task.references for task in answered):
            raise DataError(
                f"metrics = {metric} needs right answers, and no record of {names} has one; name their column"
                f" (data[...].output), or leave {metric} out"
            )
        if metric == "accuracy" and not any(task.rule for task in answered):
            raise DataError(
                f"metrics = accuracy needs to know how an answer's verdict is found in {names}; set the"
                " data set's extract to last_number, option_letter or exact"
            )
        if metric == "calibration" and len(answered) == len(tasks):
            raise DataError(
                f"metrics = calibration needs label words, and none of {names} has a column of choices; add"
                " one (a list of labels in each row), or leave calibration out"
            )


def _tell_drops(candidates: Sequence[_Candidate], progress: Progress) -> None:
    for candidate in candidates:
        drops = [drop for task in candidate.tasks for drop in task.dropped]
        for line in summary_of(drops, recorded=False):
            progress.say(f"{candidate.name}: {line}")


def _measure_all(
    config: EvalConfig,
    folder: EvalFolder,
    candidates: Sequence[_Candidate],
    found: ResultStore,
    progress: Progress,
) -> None:
    total = sum(len(candidate.tasks) for candidate in candidates)
    if len(found):
        progress.say(f"{len(found)} of {total} pairs of model and data are here already")
    if len(found) < total:
        with cluster(config.cluster) as dashboard:
            if dashboard:
                progress.say(f"Ray dashboard: {dashboard}")
            progress.start_steps(len(found), total)
            shared = TeacherAnswers()
            with WorkerReuse(config, progress) as stage:
                for candidate in candidates:
                    missing = [
                        (task, mark)
                        for task, mark in zip(candidate.tasks, candidate.marks, strict=True)
                        if (candidate.name, task.name) not in found
                    ]
                    if missing:
                        for part in _measure_model(config, folder, candidate, missing, shared, stage):
                            found.add(part)
                            progress.step(len(found))


class WorkerReuse:
    """The actors of one model, which go on to the next one where it has the same shape."""

    def __init__(self, config: EvalConfig, progress: Progress):
        self.progress = progress
        self._config, self._open = config, ExitStack()
        self._key: tuple[Any, ...] | None = None
        self._workers: EvalWorkerGroup | None = None

    def __enter__(self) -> WorkerReuse:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def workers(self, candidate: _Candidate, *, samples: bool, reads: bool) -> EvalWorkerGroup:
        """The actors, all of this model."""
        model, vocabulary, compares = candidate.model, candidate.vocabulary, candidate.compares
        key = shape_of(model), vocabulary, samples, reads, compares
        if self._workers is not None and key == self._key:
            self.progress.phase(f"{candidate.name}: loading weights")
            self._workers.swap_model(model)
            return self._workers
        self._open.close()
        self._key, self._workers = None, None
        self.progress.phase(f"{candidate.name}: starting actors")
        workers = self._open.enter_context(
            start_eval_workers(
                self._config, model, vocabulary, samples=samples, reads=reads, compares=compares
            )
        )
        self._key, self._workers = key, workers
        return workers


def _measure_model(
    config: EvalConfig,
    folder: EvalFolder,
    candidate: _Candidate,
    missing: Sequence[tuple[Task, str]],
    shared: TeacherAnswers,
    stage: WorkerReuse,
) -> Iterator[Part]:
    """Each missing part of one model, kept as soon as it is whole."""
    samples = any(samples_answers(config, task) for task, _ in missing)
    reads = candidate.compares or any(
        task.is_classification or (config.wants("lm_loss") and task.given) for task, _ in missing
    )
    workers = stage.workers(candidate, samples=samples, reads=reads)
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

"""What a comparison reads: folders of runs and of evaluations, each series with a label of its own.

A run has metrics.jsonl. An evaluation has results.json, a list of rows `{model, data, metric, bucket, seed,
value, low, high, n}` (seed null = the mean over seeds, bucket null or "all" = all answers), and may have
comparisons.json with paired tests. A folder may be both.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from ...common.errors import ConfigError, DataError, Fault, InputError, MinillmError
from ..evaluation.buckets import ALL
from ..training.metrics_log import read_metrics

METRICS, RESULTS, TESTS = "metrics.jsonl", "results.json", "comparisons.json"
STUDENTS = ("best", "last")
"""Folders of a run that say nothing without the run's own name."""


def _number(value: Any) -> Any:
    """None for nan and infinities, which JSON has no word for and Python writes all the same."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _bucket(value: Any) -> Any:
    """None for all answers, by whichever word."""
    return None if value == ALL else value


Number = Annotated[float | None, BeforeValidator(_number)]
Bucket = Annotated[str | None, BeforeValidator(_bucket)]


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True)  # further keys are left alone


class Score(_Row):
    """One row of results.json."""

    model: str
    data: str
    metric: str
    bucket: Bucket
    seed: int | None
    value: Number
    low: Number
    high: Number
    n: int


class PairedTest(_Row):
    """One row of comparisons.json: by how much `b` exceeds `a` on the same prompts."""

    data: str
    metric: str
    bucket: Bucket
    a: str
    b: str
    difference: Number
    low: Number
    high: Number
    p_value: Number
    n: int


RowKind = TypeVar("RowKind", Score, PairedTest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """All that is compared."""

    runs: dict[str, list[dict[str, Any]]]
    """Label -> lines of metrics.jsonl, events left out."""
    scores: list[Score]
    """Means over seeds of all evaluations; `model` is the label."""
    tests: list[PairedTest]
    """Paired tests of all evaluations; `a` and `b` are labels."""

    @property
    def models(self) -> list[str]:
        """Labels of evaluated models, in the order of the folders."""
        return list(dict.fromkeys(score.model for score in self.scores))

    @property
    def data(self) -> list[str]:
        """Data sets of the evaluations, in the order in which they come."""
        return list(dict.fromkeys(score.data for score in self.scores))


def read_sources(folders: Sequence[Path], labels: Sequence[str] = ()) -> Sources:
    """Read runs and evaluations; `labels`, if there are any, name the folders in their order.

    Without labels a run is called by its folder, and a model by its name in the evaluation, with the
    evaluation's folder behind it where several evaluations have that name. Raises ConfigError that lists
    every folder that cannot be used.
    """
    faults: list[Fault | str] = [*_label_faults(folders, labels)]
    found: list[tuple[list[dict[str, Any]] | None, list[Score], list[PairedTest]]] = []
    for folder in folders:
        try:
            found.append(_read(folder))
        except MinillmError as error:
            faults += error.faults if isinstance(error, InputError) else [str(error)]
    if faults:
        raise ConfigError(*faults, source="this comparison")

    names = list(labels) or list(short_names([str(folder.resolve()) for folder in folders]).values())
    name_of = _model_names([scores for _, scores, _ in found], names, given=bool(labels))
    runs = {name: lines for name, (lines, _, _) in zip(names, found, strict=True) if lines is not None}
    scores: list[Score] = []
    tests: list[PairedTest] = []
    for name, (_, rows, pairs) in zip(names, found, strict=True):
        scores += [row.model_copy(update={"model": name_of(name, row.model)}) for row in rows]
        tests += [
            pair.model_copy(update={"a": name_of(name, pair.a), "b": name_of(name, pair.b)}) for pair in pairs
        ]
    return Sources(runs=runs, scores=scores, tests=tests)


def is_source(folder: Path) -> bool:
    """Whether there is a run or an evaluation in `folder`."""
    return any((folder / name).exists() for name in (METRICS, RESULTS))


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Each path by its last parts: as many as tell it from the others, and never `best` or `last` alone."""
    parts = {path: Path(path).parts or (path,) for path in paths}
    names = {}
    for path, own in parts.items():
        others = [other for other in parts.values() if other != own]
        count = 2 if own[-1] in STUDENTS else 1
        while count < len(own) and any(other[-count:] == own[-count:] for other in others):
            count += 1
        names[path] = "/".join(own[-count:])
    return names


def _label_faults(folders: Sequence[Path], labels: Sequence[str]) -> list[str]:
    faults = []
    if not folders:
        faults.append("FOLDER is empty; name at least one run or evaluation")
    for folder, count in Counter(folder.resolve() for folder in folders).items():
        if count > 1:
            faults.append(f"FOLDER = {folder} is named {count} times; name it once")
    if labels and len(labels) != len(folders):
        faults.append(
            f"--label names {len(labels)} of {len(folders)} folders; name each of them, in their order"
        )
    faults += [
        f"--label = {label} is given {count} times; give each folder a name of its own"
        for label, count in Counter(labels).items()
        if count > 1
    ]
    return faults


def _read(folder: Path) -> tuple[list[dict[str, Any]] | None, list[Score], list[PairedTest]]:
    lines, scores = None, []
    if (folder / METRICS).exists():
        lines = read_metrics(folder)
        if not lines:
            raise DataError(
                f"FOLDER = {folder} is a run without any step yet ({METRICS} has no values); leave it out,"
                " or wait"
            )
    if (folder / RESULTS).exists():
        scores = [row for row in _rows(folder / RESULTS, Score) if row.seed is None]
        if not scores:
            raise DataError(
                f"FOLDER = {folder} is an evaluation without results ({RESULTS} has no row with seed null);"
                " leave it out, or run `minillm eval` to its end"
            )
    if lines is None and not scores:
        raise ConfigError(_neither(folder))
    tests = _rows(folder / TESTS, PairedTest) if scores and (folder / TESTS).exists() else []
    return lines, scores, tests


def _neither(folder: Path) -> str:
    if not folder.is_dir():
        return f"FOLDER = {folder} is no folder; name that of a run (`out` in its run file) or an evaluation"
    inside = sorted({path.parent for name in (METRICS, RESULTS) for path in folder.glob(f"*/{name}")})
    hint = "name " + " or ".join(map(str, inside[:4])) if inside else "name a run's or an evaluation's folder"
    return (
        f"FOLDER = {folder} is neither a run ({METRICS}) nor an evaluation ({RESULTS});"
        f" {hint}{', ...' if len(inside) > 4 else ''}"
    )


def _rows(path: Path, kind: type[RowKind]) -> list[RowKind]:
    way_out = "run `minillm eval` again into that folder"
    try:
        kept = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except ValueError as error:
        raise DataError(f"{path} is no JSON ({error}); {way_out}") from error
    if not isinstance(kept, list):
        raise DataError(f"{path} is no list of rows but a {type(kept).__name__}; {way_out}")
    rows = []
    for number, row in enumerate(kept, 1):
        try:
            rows.append(kind.model_validate(row))
        except ValidationError as error:
            fault = error.errors()[0]
            key = ".".join(map(str, fault["loc"])) or "all of it"
            value = "" if fault["type"] == "missing" else f" = {str(fault['input'])[:40]!r}"
            raise DataError(
                f"{path}, row {number}: {key}{value} cannot be used ({fault['msg']}); {way_out}"
            ) from error
    return rows


def _model_names(
    evaluations: Sequence[Sequence[Score]], names: Sequence[str], *, given: bool
) -> Callable[[str, str], str]:
    """(folder's name, model) -> label: no two models of different folders share one."""
    models = {
        name: {row.model for row in rows} for name, rows in zip(names, evaluations, strict=True) if rows
    }
    short = short_names(sorted({model for found in models.values() for model in found}))
    uses = Counter(model for found in models.values() for model in found)

    def name_of(folder: str, model: str) -> str:
        own = short.get(model, model)
        if given:
            return folder if models[folder] == {model} else f"{own} ({folder})"
        return f"{own} ({folder})" if uses[model] > 1 else own

    return name_of

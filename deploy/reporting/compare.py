"""Several runs and evaluations side by side: tables for a terminal, and pictures.

from minillm_ray.deploy.reporting.compare import compare
print(compare(["runs/minillm", "runs/control"]).pictures)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .eval_plots import PICTURES, bucket_order, plot_evaluations
from .plots import PANELS, plot_run, styles
from .sources import PairedTest, Score, Sources, is_source, read_sources

OUT = Path("runs/compare")
"""Where pictures go if nobody says otherwise."""

Lines = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """How tables show a metric of an evaluation."""

    heading: str
    digits: int
    better: int = 0
    """+1 more, -1 less, 0 neither."""


VALIDATION = {
    "validation/reverse_kl": Column(heading="reverse KL, nats/token", digits=3, better=-1),
    "validation/rouge_l": Column(heading="ROUGE-L x 100", digits=1, better=1),
    "validation/exact_match": Column(heading="exact match, %", digits=1, better=1),
    "validation/loss": Column(heading="loss, nats/token", digits=3, better=-1),
}
"""Metrics of a run that say how good its student is."""
THEMES: dict[str, dict[str, Column]] = {
    "answers against references": {
        "rouge_l": Column(heading="ROUGE-L x 100", digits=1, better=1),
        "exact_match": Column(heading="exact match, %", digits=1, better=1),
        "accuracy": Column(heading="accuracy, %", digits=1, better=1),
    },
    "distance from the teacher and from given answers, nats per token": {
        "reverse_kl": Column(heading="reverse KL", digits=3, better=-1),
        "forward_kl": Column(heading="forward KL", digits=3, better=-1),
        "lm_loss": Column(heading="LM loss", digits=3, better=-1),
    },
    "label words": {
        "label_accuracy": Column(heading="accuracy, %", digits=1, better=1),
        "ece": Column(heading="ECE", digits=3, better=-1),
        "label_mass": Column(heading="label mass", digits=3),
    },
    "what answers are like": {
        "answer_tokens": Column(heading="tokens", digits=1),
        "eos_rate": Column(heading="ended, %", digits=1),
        "repetition": Column(heading="repeated, %", digits=1),
        "distinct_4": Column(heading="distinct-4, %", digits=1),
    },
}
"""Title of a table -> its metrics. A metric that stands in none gets a table of its own."""
COLUMNS = {metric: column for columns in THEMES.values() for metric, column in columns.items()}
BY_LENGTH = ("rouge_l", "exact_match")
MOST_TESTS = 60
"""Paired tests that a screen shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What was compared, the pictures of it, and what a reader should know."""

    sources: Sources
    pictures: tuple[Path, ...]
    notes: tuple[str, ...]


def compare(folders: Sequence[Path | str], out: Path | str = OUT, labels: Sequence[str] = ()) -> Comparison:
    """Read runs and evaluations, and draw their pictures into `out`, where older ones are replaced.

    `labels` name the folders in their order. Raises ConfigError that lists each folder that cannot be used.
    """
    out, paths = Path(out), [Path(folder) for folder in folders]
    # `minillm compare runs/*` names the pictures of the last time too.
    named = [path for path in paths if path.resolve() == out.resolve() and not is_source(path)]
    sources = read_sources([path for path in paths if path not in named], labels)
    for name in (*PANELS, *PICTURES):
        # One that stayed would show folders that are not in this comparison.
        (out / f"{name}.png").unlink(missing_ok=True)
    shared = set(sources.runs) & set(sources.models)
    looks = styles([*sources.runs, *sources.models] if shared else sources.models)
    pictures = plot_run(out, sources.runs, looks if shared else None) if sources.runs else []
    pictures += plot_evaluations(out, sources.scores, looks) if sources.scores else []
    notes = [f"FOLDER = {path} is where the pictures go, and is not compared" for path in named]
    return Comparison(sources=sources, pictures=tuple(pictures), notes=(*notes, *_notes(sources)))


def render(comparison: Comparison) -> Group:
    """Tables, notes and where the pictures are."""
    sources = comparison.sources
    parts: list[RenderableType] = []
    if sources.runs:
        parts += [_runs_table(sources.runs), *_validation_table(sources.runs)]
    if sources.scores:
        parts += [*_score_tables(sources), *_exposure_table(sources), *_length_tables(sources)]
        parts += _test_table(sources.tests)
    parts += [Text(f"note: {note}", style="yellow") for note in comparison.notes]
    parts += [Text(f"  picture   {path}") for path in comparison.pictures]
    return Group(*parts)


def _notes(sources: Sources) -> list[str]:
    """What cannot be compared; what there is, is shown all the same."""
    notes = []
    if len(sources.runs) > 1:
        have = {
            name: [m.removeprefix("validation/") for m in VALIDATION if any(m in line for line in lines)]
            for name, lines in sources.runs.items()
        }
        notes += _nothing_shared("no validation metric is in all runs", have, "validate them alike")
    if len(sources.models) > 1:
        measured: dict[str, list[str]] = {model: [] for model in sources.models}
        for score in sources.scores:
            if score.bucket is None and score.value is not None:
                measured[score.model].append(f"{score.metric} on {score.data}")
        notes += _nothing_shared(
            "no metric on the same data set is there for all models",
            measured,
            "give `minillm eval` the same data and metrics",
        )
    return notes


def _nothing_shared(what: str, have: Mapping[str, Sequence[str]], way_out: str) -> list[str]:
    if set.intersection(*map(set, have.values())):
        return []
    lists = "; ".join(
        f"{name} has {', '.join(found[:3]) or 'none'}{', ...' if len(found) > 3 else ''}"
        for name, found in have.items()
    )
    return [f"{what} ({lists}); {way_out} to see them side by side"]


def _table(title: str, left: Iterable[str], right: Iterable[str]) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for heading in left:
        table.add_column(heading, overflow="fold")
    for heading in right:
        table.add_column(heading, justify="right", overflow="fold")
    return table


def _runs_table(runs: Mapping[str, Lines]) -> Table:
    table = _table(
        "runs", ["run"], ["steps", "seconds", "tokens drawn", "drawn/s", "tokens trained", "trained/s"]
    )
    for name, lines in runs.items():
        drawn, trained = _speed(lines, "rollout", "set_s"), _speed(lines, "learner", "step_s")
        steps = max(line["step"] for line in lines)
        table.add_row(name, f"{steps:,}", f"{_seconds(lines):,.0f}", *drawn, *trained)
    return table


def _seconds(lines: Lines) -> float:
    """Seconds of the loop, validation among them; pauses between a stop and `resume` do not count."""
    rounds = [line["run/iteration_s"] for line in lines if "run/iteration_s" in line]
    return sum(rounds) if rounds else lines[-1].get("at", 0.0) - lines[0].get("at", 0.0)


def _speed(lines: Lines, part: str, clock: str) -> tuple[str, str]:
    """Tokens in all, and per second of the part's own time: a mean of rates would favour short steps."""
    rate, spent = f"{part}/tokens_per_s", f"{part}/{clock}"
    known = [(line[rate] * line[spent], line[spent]) for line in lines if rate in line and spent in line]
    tokens, seconds = sum(t for t, _ in known), sum(s for _, s in known)
    return (f"{tokens:,.0f}", f"{tokens / seconds:,.0f}") if seconds else ("-", "-")


def _validation_table(runs: Mapping[str, Lines]) -> list[Table]:
    table = _table("validation while training", ["metric", "run"], ["first", "last", "best", "best at step"])
    for metric, column in VALIDATION.items():
        heading = _heading(column)
        for name, lines in runs.items():
            points = [(line["step"], line[metric]) for line in lines if metric in line]
            if not points:
                continue
            # The first of equals, and never what is no number: the run keeps that student as its best.
            finite = [point for point in points if math.isfinite(point[1])]
            best = max(finite, key=lambda point: column.better * point[1], default=None)
            ends = [f"{value:.{column.digits}f}" for _, value in (points[0], points[-1])]
            top = ["-", "-"] if best is None else [f"{best[1]:.{column.digits}f}", str(best[0])]
            table.add_row(heading, name, *ends, *top)
            heading = ""
        table.add_section()
    return [table] if table.row_count else []


def _score_tables(sources: Sources) -> list[Table]:
    """One row per data set and model, a table for each theme that has values."""
    found = dict.fromkeys(score.metric for score in sources.scores if score.bucket is None)
    rest = [metric for metric in found if metric not in COLUMNS]
    themes = {title: list(columns) for title, columns in THEMES.items()}
    themes |= {f"further metrics {i // 3 + 1}": rest[i : i + 3] for i in range(0, len(rest), 3)}
    tables = []
    for title, metrics in themes.items():
        columns: dict[tuple[str, str | None], Column] = {
            (metric, None): _column(metric) for metric in metrics if metric in found
        }
        tables += _side_by_side(sources, f"{title} (mean [95 % interval])", columns)
    return tables


def _length_tables(sources: Sources) -> list[Table]:
    tables = []
    for metric in BY_LENGTH:
        found = {score.bucket for score in sources.scores if score.metric == metric and score.bucket}
        column = COLUMNS[metric]
        columns: dict[tuple[str, str | None], Column] = {
            (metric, bucket): Column(heading=f"{bucket} words", digits=column.digits)
            for bucket in sorted(found, key=bucket_order)
        }
        title = f"{_heading(column)} by length of the reference answer (mean [95 % interval], answers)"
        tables += _side_by_side(sources, title, columns, count_each=True)
    return tables


def _side_by_side(
    sources: Sources,
    title: str,
    columns: dict[tuple[str, str | None], Column],
    *,
    count_each: bool = False,
) -> list[Table]:
    """Models below each other for each data set; columns are (metric, bucket). n per cell, or per row."""
    scores = {(s.data, s.model, s.metric, s.bucket): s for s in sources.scores}
    headings = [_heading(column) for column in columns.values()]
    table = _table(title, ["data", "model"], headings if count_each else [*headings, "answers"])
    for data in sources.data:
        named = ""
        for model in sources.models:
            row = [scores.get((data, model, *key)) for key in columns]
            known = [score for score in row if score is not None]
            if not known:
                continue
            cells = [
                _cell(score, column.digits, count=count_each)
                for score, column in zip(row, columns.values(), strict=True)
            ]
            counts = sorted({score.n for score in known})
            many = f"{counts[0]}-{counts[-1]}" if len(counts) > 1 else str(counts[0])
            table.add_row("" if named else data, model, *cells, *([] if count_each else [many]))
            named = data
        table.add_section()
    return [table] if table.row_count else []


def _exposure_table(sources: Sources) -> list[Table]:
    """ExAccErr at the greatest length that all models of a data set reach; the curves are a picture."""
    table = _table(
        "exposure bias: ExAccErr(l), % (mean [95 % interval])",
        ["data", "model"],
        ["length l", "ExAccErr(l) ↓"],
    )
    for data in sources.data:
        curves: dict[str, dict[float, Score]] = {}
        for s in sources.scores:
            if (s.data, s.metric) == (data, "ex_acc_err") and s.bucket and s.value is not None:
                curves.setdefault(s.model, {})[bucket_order(s.bucket)] = s
        common = set.intersection(*map(set, curves.values())) if curves else set()
        heading = data
        for model, curve in curves.items():
            length = max(common or curve)
            table.add_row(heading, model, f"{length:.0f}", _cell(curve[length], 1))
            heading = ""
        table.add_section()
    return [table] if table.row_count else []


def _test_table(tests: Sequence[PairedTest]) -> list[RenderableType]:
    if not tests:
        return []
    table = _table(
        "paired tests on the same prompts: b minus a [95 % interval]; * = p < 0.05",
        ["data", "metric", "a", "b"],
        ["b - a", "p", "prompts"],
    )
    # What is over all answers comes first, and so is not what a long list loses.
    ordered = sorted(tests, key=lambda test: test.bucket is not None)[:MOST_TESTS]
    for test, following in zip_longest(ordered, ordered[1:]):
        column = _column(test.metric)
        name = f"{_heading(column)} {test.bucket or ''}"
        p = "-" if test.p_value is None else f"{test.p_value:.3f}{'*' if test.p_value < 0.05 else ' '}"
        difference = _interval(test.difference, test.low, test.high, column.digits, sign="+")
        end = following is None or (following.data, following.bucket is None) != (
            test.data,
            test.bucket is None,
        )
        table.add_row(test.data, name, test.a, test.b, difference, p, str(test.n), end_section=end)
    said = f"{len(tests)} tests, p-values as they are: with so many, about {len(tests) * 0.05:.1f} fall below"
    said += " 0.05 by chance."
    if len(tests) > MOST_TESTS:
        said += f" The first {MOST_TESTS} are shown; all are in comparisons.json."
    return [table, Text(said, style="dim")]


def _column(metric: str) -> Column:
    return COLUMNS.get(metric, Column(heading=metric, digits=3))


def _heading(column: Column) -> str:
    return column.heading + {1: " ↑", -1: " ↓", 0: ""}[column.better]


def _cell(score: Score | None, digits: int, *, count: bool = False) -> str:
    if score is None:
        return "-"
    if score.n == 0:
        return "no answers"
    return _interval(score.value, score.low, score.high, digits) + (f", {score.n}" if count else "")


def _interval(value: float | None, low: float | None, high: float | None, digits: int, sign: str = "") -> str:
    if value is None:
        return "-"
    if low is None or high is None:
        return f"{value:{sign}.{digits}f}"
    # No blank inside the brackets: a narrow terminal then breaks before them.
    return f"{value:{sign}.{digits}f} [{low:{sign}.{digits}f},{high:{sign}.{digits}f}]"

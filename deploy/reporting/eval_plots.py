"""Pictures of evaluations: exposure bias by length, reliability, scores by length of the reference."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .plots import Style, legend_above, save, styles
from .sources import Score

EXPOSURE = {
    "ex_acc_err": "excess accumulated error\nExAccErr(l), %",
    "accumulated_kl": "KL(teacher || model) added up\nto l, own prefixes, nats",
    "per_step_kl": "mean KL(teacher || model) to l,\nteacher's prefixes, nats per token",
}
"""Metrics by length -> what the axis says."""
LENGTHS = {"rouge_l": "ROUGE-L × 100", "exact_match": "exact match, %"}
"""Metrics by length bucket -> what the axis says."""
PICTURES = ("exposure_bias", "reliability", "length_buckets")
"""Names of the PNG files."""
DARK = "#333333"
ACROSS = 4
"""Most reliability diagrams side by side."""


def plot_evaluations(
    folder: Path, scores: Sequence[Score], looks: Mapping[str, Style] | None = None
) -> list[Path]:
    """Draw every picture that has values, one colour per model; returns the PNG files written.

    `scores` are rows of any number of models and data sets; those of single seeds are left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scores = [score for score in scores if score.seed is None]
    looks = looks or styles(score.model for score in scores)
    drawn = (
        _exposure(folder / "exposure_bias.png", scores, looks),
        _reliability(folder / "reliability.png", scores, looks),
        _lengths(folder / "length_buckets.png", scores, looks),
    )
    return [path for path in drawn if path is not None]


def bucket_order(bucket: str) -> float:
    """Buckets sort by the number that they begin with: "11+" after "6-10"."""
    digits = bucket.lstrip("[(").split("-")[0].split(",")[0].rstrip("+")
    try:
        return float(digits)
    except ValueError:
        return float("inf")


def _exposure(target: Path, scores: Sequence[Score], looks: Mapping[str, Style]) -> Path | None:
    series = _series(scores, EXPOSURE)
    metrics, data = _names(series, EXPOSURE)
    if not series:
        return None
    figure, axes = _grid(metrics, data, width=4.8, height=3.1)
    handles: dict[str, Artist] = {}
    for (metric, name), axis in zip(product(metrics, data), axes, strict=True):
        seen = {model: rows for (m, d, model), rows in series.items() if (m, d) == (metric, name)}
        for model, rows in seen.items():
            handles[model] = _band(axis, rows, looks[model])
        if metric == "ex_acc_err":
            axis.axhline(0, color=DARK, linewidth=0.8)
        _limit(axis, [row for rows in seen.values() for row in rows])
        axis.set_xlabel("length l, answer tokens", fontsize=8)
        _finish(axis, seen, EXPOSURE[metric], name)
    legend_above(figure, {model: handles[model] for model in looks if model in handles})
    return save(figure, target)


def _band(axis: Axes, rows: Sequence[Score], style: Style) -> Artist:
    steps = [int(row.bucket or 0) for row in rows]
    (line,) = axis.plot(steps, _values(rows, "value"), **style.line(len(rows)))
    axis.fill_between(
        steps, _values(rows, "low"), _values(rows, "high"), color=style.color, alpha=0.16, linewidth=0
    )
    return line


def _limit(axis: Axes, rows: Sequence[Score]) -> None:
    """Show the curves: a band may reach as far again beyond them, and is cut off there."""
    values = _values(rows, "value")
    values = values[np.isfinite(values)]
    if not len(values):
        return
    edges = np.concatenate([values, _values(rows, "low"), _values(rows, "high")])
    reach = max(float(np.ptp(values)), 0.1 * float(np.abs(values).max()), 1e-6)
    low = max(np.nanmin(edges), values.min() - reach)
    high = min(np.nanmax(edges), values.max() + reach)
    margin = 0.05 * max(high - low, reach)
    axis.set_ylim(low - margin, high + margin)


def _reliability(target: Path, scores: Sequence[Score], looks: Mapping[str, Style]) -> Path | None:
    bins = _series(scores, ("reliability_accuracy", "reliability_confidence"))
    drawn = [
        (data, model)
        for data in dict.fromkeys(data for _, data, _ in bins)
        for model in looks
        if ("reliability_accuracy", data, model) in bins and ("reliability_confidence", data, model) in bins
    ]
    if not drawn:
        return None
    whole = {(s.metric, s.data, s.model): s for s in scores if s.bucket is None}
    columns = min(ACROSS, max(sum(d == data for d, _ in drawn) for data, _ in drawn))
    # A data set begins a row of its own, so that each column is one model where they fit.
    positions: list[tuple[int, int]] = []
    for i, (data, _) in enumerate(drawn):
        row, column = positions[-1] if positions else (0, -1)
        new = column + 1 == columns or (i > 0 and drawn[i - 1][0] != data)
        positions.append((row + 1, 0) if new else (row, column + 1))
    rows = positions[-1][0] + 1
    figure = plt.figure(figsize=(3.1 * columns, 4.0 * rows + 0.3), layout="constrained")
    grid = figure.add_gridspec(rows, columns)
    for (row, column), (data, model) in zip(positions, drawn, strict=True):
        upper = figure.add_subplot(grid[row, column])
        lower = upper.inset_axes((0, -0.3, 1, 0.22))
        accuracy = bins["reliability_accuracy", data, model]
        _diagram(upper, lower, accuracy, bins["reliability_confidence", data, model], looks[model])
        title = f"{textwrap.fill(model, 40)}\n{data}: {_ece(whole.get(('ece', data, model)))}"
        upper.set_title(title, fontsize=9)
        if column == 0:
            upper.set_ylabel("accuracy of the bin", fontsize=8)
            lower.set_ylabel("answers", fontsize=8)
    legend_above(
        figure,
        {
            "accuracy": Patch(facecolor="#BBBBBB"),
            "gap to the mean confidence": Patch(
                facecolor="none", edgecolor=DARK, hatch="////", linewidth=0.8
            ),
            "as sure as right": plt.Line2D([], [], color=DARK, linestyle="--", linewidth=1),
        },
    )
    return save(figure, target)


def _diagram(
    upper: Axes, lower: Axes, accuracy: Sequence[Score], confidence: Sequence[Score], style: Style
) -> None:
    sure = {row.bucket: row.value for row in confidence}
    for row in accuracy:
        low, high = (float(edge) for edge in (row.bucket or "0-1").split("-"))
        middle, width = (low + high) / 2, 0.94 * (high - low)
        lower.bar(middle, row.n, width, color=style.color)
        if row.value is None:
            continue
        upper.bar(middle, row.value, width, color=style.color, alpha=0.65)
        mean = sure.get(row.bucket)
        if mean is not None:
            bottom = min(row.value, mean)
            upper.bar(
                middle,
                max(row.value, mean) - bottom,
                width,
                bottom,
                facecolor="none",
                edgecolor=DARK,
                hatch="////",
                linewidth=0.8,
            )
            upper.plot([middle - width / 2, middle + width / 2], [mean, mean], color=DARK, linewidth=1.6)
    upper.plot([0, 1], [0, 1], "--", color=DARK, linewidth=1)
    upper.set(xlim=(0, 1), ylim=(0, 1))
    upper.tick_params(labelbottom=False, labelsize=8)
    upper.grid(alpha=0.25)
    upper.set_axisbelow(True)
    lower.set(xlim=(0, 1))
    lower.set_ylim(bottom=0)
    lower.tick_params(labelsize=8)
    lower.locator_params(axis="y", nbins=3, integer=True)
    lower.set_xlabel("confidence", fontsize=8)


def _ece(score: Score | None) -> str:
    if score is None or score.value is None:
        return "ECE not measured"
    if score.low is None or score.high is None:
        return f"ECE {score.value:.3f}"
    return f"ECE {score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


def _lengths(target: Path, scores: Sequence[Score], looks: Mapping[str, Style]) -> Path | None:
    series = _series(scores, LENGTHS)
    metrics, data = _names(series, LENGTHS)
    if not series:
        return None
    figure, axes = _grid(metrics, data, width=4.8, height=3.1)
    models = [model for model in looks if any(model == m for _, _, m in series)]
    width = 0.8 / len(models)
    for (metric, name), axis in zip(product(metrics, data), axes, strict=True):
        seen = {model: rows for (m, d, model), rows in series.items() if (m, d) == (metric, name)}
        buckets = sorted({row.bucket or "" for rows in seen.values() for row in rows}, key=bucket_order)
        for model, rows in seen.items():
            positions = [
                buckets.index(row.bucket or "") + (models.index(model) - (len(models) - 1) / 2) * width
                for row in rows
            ]
            value, low, high = (_values(rows, key) for key in ("value", "low", "high"))
            style = looks[model]
            axis.bar(positions, value, 0.92 * width, color=style.color, hatch=style.hatch)
            whiskers = np.clip(np.nan_to_num([value - low, high - value]), 0, None)
            axis.errorbar(positions, value, whiskers, fmt="none", ecolor=DARK, elinewidth=1, capsize=2)
        axis.set_xticks(range(len(buckets)), [_with_count(bucket, seen) for bucket in buckets])
        axis.set_xlim(-0.6, len(buckets) - 0.4)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("words of the reference answer", fontsize=8)
        _finish(axis, seen, LENGTHS[metric], name)
    legend_above(figure, {m: Patch(facecolor=looks[m].color, hatch=looks[m].hatch) for m in models})
    return save(figure, target)


def _with_count(bucket: str, seen: Mapping[str, Sequence[Score]]) -> str:
    counts = sorted({row.n for rows in seen.values() for row in rows if row.bucket == bucket})
    if counts == [0]:
        return f"{bucket}\nno answers"
    return f"{bucket}\nn = {counts[0]}" + (f"–{counts[-1]}" if len(counts) > 1 else "")


def _series(
    scores: Sequence[Score], metrics: Mapping[str, str] | Sequence[str]
) -> dict[tuple[str, str, str], list[Score]]:
    """(metric, data, model) -> its rows by bucket, those over all answers left out."""
    found: dict[tuple[str, str, str], list[Score]] = {}
    for score in scores:
        if score.metric in metrics and score.bucket is not None:
            found.setdefault((score.metric, score.data, score.model), []).append(score)
    return {key: sorted(rows, key=lambda row: bucket_order(row.bucket or "")) for key, rows in found.items()}


def _names(
    series: Mapping[tuple[str, str, str], object], metrics: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """Metrics and data sets that have values: rows and columns of a picture."""
    present = {metric for metric, _, _ in series}
    return [m for m in metrics if m in present], list(dict.fromkeys(data for _, data, _ in series))


def _grid(
    metrics: Sequence[str], data: Sequence[str], *, width: float, height: float
) -> tuple[Figure, list[Axes]]:
    figure, axes = plt.subplots(
        max(1, len(metrics)),
        max(1, len(data)),
        figsize=(width * len(data), height * len(metrics) + 0.4),
        squeeze=False,
        layout="constrained",
    )
    return figure, list(axes.flat)


def _finish(axis: Axes, seen: Mapping[str, object], label: str, title: str) -> None:
    axis.set_title(title, fontsize=10)
    axis.set_ylabel(label, fontsize=8)
    axis.grid(alpha=0.25, axis="both")
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8)
    if not seen:
        axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color=DARK)


def _values(rows: Sequence[Score], key: str) -> npt.NDArray[np.float64]:
    """Values, or edges of their intervals; nan where there is none."""
    return np.array([np.nan if (v := getattr(row, key)) is None else v for row in rows], np.float64)

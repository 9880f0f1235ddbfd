"""Pictures of a run, for people who look rather than read."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...common.metrics import CATALOGUE

PANELS: dict[str, tuple[str, ...]] = {
    "quality": ("validation/reverse_kl", "validation/rouge_l", "validation/exact_match", "validation/loss"),
    "learning": (
        "learner/reverse_kl",
        "learner/forward_kl",
        "learner/divergence",
        "learner/answer_nll",
        "learner/text_loss",
        "learner/loss",
        "learner/grad_norm",
        "learner/lr",
    ),
    "health": (
        "rollout/answer_tokens",
        "rollout/eos_rate",
        "rollout/distinct_4",
        "learner/clip_fraction",
        "learner/engine_gap",
        "learner/overlap",
    ),
    "weights": ("rollout/weight_p05", "rollout/weight_p50", "rollout/weight_p95", "rollout/weight_mean"),
    "speed": ("rollout/tokens_per_s", "teacher/tokens_per_s", "learner/tokens_per_s", "run/iteration_s"),
}
"""File name -> metrics, one panel each."""


COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#8C8C8C")
"""Told apart by colour-blind eyes too (Okabe and Ito; for their faint yellow and black, wine and grey)."""
MARKERS = "osD^vPX*"
STROKES = ("-", "--", ":", "-.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How one run or model is drawn in every panel of every picture."""

    color: str
    marker: str
    linestyle: str
    hatch: str
    shift: float
    """Where its first marker stands, as a share of the way to the second: lines that coincide are seen."""

    def line(self, points: int) -> dict[str, Any]:
        """How `Axes.plot` draws a line through so many points: about a dozen of them marked."""
        every = max(1, points // 12)
        return {
            "color": self.color,
            "linestyle": self.linestyle,
            "marker": self.marker,
            "markevery": (int(self.shift * every), every),
            "markersize": 4,
            "linewidth": 1.4,
            "alpha": 0.9,
        }


def styles(labels: Iterable[str]) -> dict[str, Style]:
    """A style for each label, by their order; beyond eight, colours come again with other strokes."""
    found: dict[str, Style] = {}
    for number, label in enumerate(dict.fromkeys(labels)):
        turn, index = divmod(number, len(COLOURS))
        found[label] = Style(
            color=COLOURS[index],
            marker=MARKERS[index],
            linestyle=STROKES[turn % len(STROKES)],
            hatch=("", "//", "..", "xx")[turn % len(STROKES)],
            shift=index / len(COLOURS),
        )
    return found


def plot_run(
    folder: Path, runs: Mapping[str, Sequence[Mapping[str, Any]]], looks: Mapping[str, Style] | None = None
) -> list[Path]:
    """Draw every panel that has values, one line per run; returns the PNG files written.

    `runs` maps a label to the lines of that run's metrics.jsonl; `looks` gives each label its style.
    """
    folder.mkdir(parents=True, exist_ok=True)
    looks = looks or styles(runs)
    written: list[Path] = []
    for name, metrics in PANELS.items():
        present = [m for m in metrics if any(m in row for rows in runs.values() for row in rows)]
        if present:
            written.append(_draw(folder / f"{name}.png", present, runs, looks))
    return written


def legend_above(figure: Figure, handles: Mapping[str, Artist]) -> None:
    """One legend for all panels of a figure with constrained layout, in as many columns as its labels fit."""
    letter, beside = 0.085, 0.55  # inches of a letter, and of what stands beside a label
    width = figure.get_figwidth()
    labels = [textwrap.fill(label, max(20, int((width - beside) / letter))) for label in handles]
    longest = max((len(line) for label in labels for line in label.splitlines()), default=0)
    columns = max(1, int(width / (letter * longest + beside)))
    figure.legend(
        list(handles.values()),
        labels,
        loc="outside upper center",
        ncols=min(len(handles), columns),
        frameon=False,
        fontsize=9,
    )


def save(figure: Figure, target: Path) -> Path:
    """Write a picture, and let go of it."""
    figure.savefig(target, dpi=110)
    plt.close(figure)
    return target


def _draw(
    target: Path,
    metrics: Sequence[str],
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    looks: Mapping[str, Style],
) -> Path:
    # Four panels are a square; a third in each row would leave the fourth alone.
    columns = 2 if len(metrics) == 4 else min(3, len(metrics))
    rows = -(-len(metrics) // columns)
    figure: Figure
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.6 * columns, 3.2 * rows), squeeze=False, layout="constrained"
    )
    for axis, metric in zip(axes.flat, metrics, strict=False):
        _curve(axis, metric, runs, looks)
    for axis in list(axes.flat)[len(metrics) :]:
        axis.set_visible(False)
    # A run may be missing in the first panel, so every panel is asked.
    drawn = {
        label: handle
        for axis in axes.flat
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    if len(runs) > 1:
        legend_above(figure, {label: drawn[label] for label in runs if label in drawn})
    return save(figure, target)


def _curve(
    axis: Axes,
    metric: str,
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    looks: Mapping[str, Style],
) -> None:
    for label, lines in runs.items():
        points = [(line["step"], line[metric]) for line in lines if metric in line]
        if points:
            steps, values = zip(*points, strict=True)
            axis.plot(steps, values, label=label, **looks[label].line(len(points)))
    axis.set_title(metric, fontsize=10)
    axis.set_xlabel("optimiser step", fontsize=8)
    axis.set_ylabel(textwrap.fill(CATALOGUE[metric], 44), fontsize=7)
    axis.grid(alpha=0.25)
    axis.tick_params(labelsize=8)

"""Pictures of a run, for people who look rather than read."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..common.metrics import CATALOGUE

PANELS: dict[str, tuple[str, ...]] = {
    "quality": ("validation/reverse_kl", "validation/rouge_l", "validation/exact_match"),
    "learning": ("learner/reverse_kl", "learner/loss", "learner/grad_norm", "learner/lr"),
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


def plot_run(folder: Path, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Path]:
    """Draw every panel that has values, one line per run; returns the PNG files written.

    `runs` maps a label to the lines of that run's metrics.jsonl.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for name, metrics in PANELS.items():
        present = [m for m in metrics if any(m in row for rows in runs.values() for row in rows)]
        if present:
            written.append(_draw(folder / f"{name}.png", present, runs))
    return written


def _draw(target: Path, metrics: Sequence[str], runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Path:
    columns = min(3, len(metrics))
    rows = -(-len(metrics) // columns)
    figure: Figure
    figure, axes = plt.subplots(rows, columns, figsize=(4.6 * columns, 3.2 * rows), squeeze=False)
    for axis, metric in zip(axes.flat, metrics, strict=False):
        _curve(axis, metric, runs)
    for axis in list(axes.flat)[len(metrics) :]:
        axis.set_visible(False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, loc="upper center", ncols=len(labels), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 if len(labels) < 2 else 1 - 0.3 / figure.get_figheight()))
    figure.savefig(target, dpi=110)
    plt.close(figure)
    return target


def _curve(axis: Axes, metric: str, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    for label, lines in runs.items():
        points = [(line["step"], line[metric]) for line in lines if metric in line]
        if points:
            steps, values = zip(*points, strict=True)
            style = "o-" if len(points) < 30 else "-"
            axis.plot(steps, values, style, label=label, linewidth=1.2, markersize=3)
    axis.set_title(metric, fontsize=10)
    axis.set_xlabel("optimiser step", fontsize=8)
    axis.set_ylabel(textwrap.fill(CATALOGUE[metric], 44), fontsize=7)
    axis.grid(alpha=0.25)
    axis.tick_params(labelsize=8)

"""What the contests come to: medians, ratios against TRL, and a picture of the curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from ..ground import Values

RESULTS = Path(__file__).parents[1] / "results" / "time_to_quality.json"
FIGURE = Path(__file__).parents[2] / "docs" / "figures" / "time_to_quality.png"
THEIRS = "distillation"
RATIOS = {
    "time_to_quality_vs_trl": ("ours_minillm", "seconds"),
    "time_to_quality_fresh_vs_trl": ("ours_fresh", "seconds"),
    "tokens_to_quality_vs_trl": ("ours_minillm", "tokens"),
    "tokens_to_quality_fresh_vs_trl": ("ours_fresh", "tokens"),
}
"""Name of a ratio -> whose seconds or sampled tokens TRL's are divided by: above 1, ours needs fewer."""


def summary(searches: Mapping[str, Sequence[Values]], runs: Mapping[str, Sequence[Values]]) -> Values:
    """Ratios, and by contender what its seeds needed; null = the threshold was not reached."""
    found = {name: _contender(searches[name], several) for name, several in runs.items()}
    ratios: Values = {}
    for key, (name, of) in RATIOS.items():
        ours, theirs = (found.get(one, {}).get(of) for one in (name, THEIRS))
        ratios[key] = theirs / ours if ours and theirs else None
    return {**ratios, "contenders": found}


def _contender(search: Sequence[Values], runs: Sequence[Values]) -> Values:
    found: Values = {"lr": runs[0]["lr"]}
    for of in ("seconds", "tokens", "step"):
        values = [run["reached"][of] if run["reached"] else math.inf for run in runs]
        middle = median(values)
        found[of] = middle if math.isfinite(middle) else None
        found[f"all_{of}"] = [value if math.isfinite(value) else None for value in values]
    found["start_up_s"] = median(run["start_up_s"] for run in runs)
    found["search_seconds"] = {
        f"{run['lr']:g}": run["reached"]["seconds"] if run["reached"] else None for run in search
    }
    return found


def draw(runs: Mapping[str, Sequence[Values]], threshold: float, target: Path) -> None:
    """The reverse KL of every run over its seconds and over its sampled tokens."""
    from ...deploy.reporting import plots

    looks = plots.styles(runs)
    figure, axes = plots.plt.subplots(1, 2, figsize=(9.2, 3.6), sharey=True, layout="constrained")
    lines = {}
    for axis, of in zip(axes, ("seconds", "tokens"), strict=True):
        for name, several in runs.items():
            for run in several:
                curve = [(style[of], style["reverse_kl"]) for style in run["looks"]]
                (lines[name],) = axis.plot(*zip(*curve, strict=True), **looks[name].line(len(curve)))
        axis.axhline(threshold, color="grey", linewidth=0.8)
        axis.set_xlabel({"seconds": "seconds of training", "tokens": "sampled answer tokens"}[of], fontsize=8)
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=8)
    axes[0].set_ylabel("held-out reverse KL, nats per token", fontsize=8)
    plots.legend_above(figure, lines)
    plots.save(figure, target)

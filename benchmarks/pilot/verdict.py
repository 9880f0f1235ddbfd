"""What the pilot asks: where is the gap between teacher and student wide enough to tell methods apart?"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

Row = dict[str, Any]
WIDE = 3.0
"""The gap, in spreads between training seeds, from which a study is worth its time."""
CHANCE = {"label_accuracy": 50.0}
"""Figures of a model that guesses."""


def verdict(pair: str, folder: Path) -> Row:
    """Means and spreads of methods by metric, the gap between teacher and start, and what each run cost."""
    rows = json.loads((folder / "eval" / "results.json").read_text(encoding="utf-8"))
    found: dict[tuple[str, str, str], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if row["seed"] is None and row["value"] is not None and not row["metric"].startswith("reliability"):
            found[row["data"], row["metric"], row["bucket"]][row["model"]] = row
    tables = [_table(key, models) for key, models in found.items() if not key[2].isdigit()]
    return {"pair": pair, "tables": [t for t in tables if t is not None], "cost": _costs(folder)}


def _table(key: tuple[str, str, str], models: dict[str, Row]) -> Row | None:
    by_method: dict[str, list[float]] = defaultdict(list)
    teacher = start = None
    for name, row in models.items():
        method, _, seed = name.split("/")[0].rpartition("-")
        if seed.isdigit():
            by_method[method].append(row["value"])
        elif name.startswith("start/"):
            start = row
        else:
            teacher = row
    if start is None or not by_method:
        return None
    spreads = {m: stdev(values) for m, values in by_method.items() if len(values) > 1}
    spread = max(spreads.values(), default=None)
    gap = None if teacher is None else abs(teacher["value"] - start["value"])
    methods = {m: {"mean": mean(v), "spread": spreads.get(m), "values": v} for m, v in by_method.items()}
    chance = CHANCE.get(key[1])
    low, high = start["low"], start["high"]
    at_chance = chance is not None and low is not None and low <= chance <= high
    return {
        "data": key[0], "metric": key[1], "bucket": key[2],
        "teacher": _interval(teacher), "start": _interval(start),
        "methods": methods,
        "gap": gap, "largest_spread": spread,
        "gap_in_spreads": gap / spread if gap is not None and spread else None,
        "tells_methods_apart": bool(gap is not None and spread and gap >= WIDE * spread and not at_chance),
        "start_is_at_chance": at_chance,
    }  # fmt: skip


def _interval(row: Row | None) -> Row | None:
    return row and {key: row[key] for key in ("value", "low", "high")}


def _costs(folder: Path) -> dict[str, Row]:
    """Trained positions, sampled tokens, steps and seconds of each run, off its metrics."""
    phases = json.loads((folder / "phases.json").read_text(encoding="utf-8"))
    costs = {}
    for name, kept in phases.items():
        file = folder / name / "metrics.jsonl"
        if not file.exists():
            continue
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        costs[name] = {
            "trained_positions": round(_total(lines, "learner/tokens_per_s", "learner/step_s")),
            "sampled_tokens": round(_total(lines, "rollout/tokens_per_s", "rollout/set_s")),
            "steps": sum("learner/loss" in line for line in lines),
            "seconds_with_start": kept["seconds"],
            "seconds_of_iterations": round(sum(line.get("run/iteration_s", 0.0) for line in lines), 1),
        }
    return costs


def _total(lines: list[Row], rate: str, seconds: str) -> float:
    return sum(line[rate] * line[seconds] for line in lines if rate in line and seconds in line)

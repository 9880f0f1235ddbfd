"""What the pilot asks: where is the gap between teacher and student wide enough to tell methods apart?"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from minillm_ray.deploy.recorder import read_metrics

Row = dict[str, Any]
WIDE = 3.0
"""The gap, in spreads between training seeds, from which a study is worth its time."""
CHANCE = 50.0
"""Accuracy of a model that guesses between two labels."""
OF_LABELS = ("label_accuracy", "ece", "label_mass")
LENGTHS = ("10", "25", "40")
"""Answer lengths at which exposure bias is put into the tables."""


def verdict(pair: str, folder: Path) -> Row:
    """Means and spreads of methods by metric, the gap between teacher and start, and what each run cost."""
    rows = json.loads((folder / "eval" / "results.json").read_text(encoding="utf-8"))
    found: dict[tuple[str, str, str], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if row["seed"] is None and row["value"] is not None and not row["metric"].startswith("reliability"):
            found[row["data"], row["metric"], row["bucket"]][row["model"]] = row
    shown = {key: models for key, models in found.items() if not key[2].isdigit() or key[2] in LENGTHS}
    tables = [
        _table(key, models, _guesses(found.get((key[0], "label_accuracy", "all"), {})))
        for key, models in shown.items()
    ]
    return {"pair": pair, "tables": [t for t in tables if t is not None], "cost": _costs(folder)}


def _guesses(accuracy: dict[str, Row]) -> bool:
    """Whether the teacher chooses labels no better than by chance: then no student can show anything."""
    teachers = [
        row for name, row in accuracy.items() if _method_of(name) == (None, None) and "start/" not in name
    ]
    return any(row["low"] is not None and row["low"] <= CHANCE <= row["high"] for row in teachers)


def _method_of(model: str) -> tuple[str | None, str | None]:
    """Method and training seed of a phase such as kd-2/last; neither for teacher and start."""
    method, _, seed = model.split("/")[0].rpartition("-")
    return (method, seed) if seed.isdigit() else (None, None)


def _table(key: tuple[str, str, str], models: dict[str, Row], guesses: bool) -> Row | None:
    by_method: dict[str, list[float]] = defaultdict(list)
    teacher = start = None
    for name, row in models.items():
        method, _ = _method_of(name)
        if method is not None:
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
    at_chance = key[1] in OF_LABELS and guesses
    return {
        "data": key[0], "metric": key[1], "bucket": key[2],
        "teacher": _interval(teacher), "start": _interval(start),
        "methods": methods,
        "gap": gap, "largest_spread": spread,
        "gap_in_spreads": gap / spread if gap is not None and spread else None,
        "tells_methods_apart": bool(gap is not None and spread and gap >= WIDE * spread and not at_chance),
        "uninformative_at_chance": at_chance,
    }  # fmt: skip


def _interval(row: Row | None) -> Row | None:
    return row and {key: row[key] for key in ("value", "low", "high")}


def _costs(folder: Path) -> dict[str, Row]:
    """Trained positions, sampled tokens, steps and seconds of each run, off its metrics."""
    phases = json.loads((folder / "phases.json").read_text(encoding="utf-8"))
    costs = {}
    for name, kept in phases.items():
        if not (folder / name / "metrics.jsonl").exists():
            continue
        lines = read_metrics(folder / name)
        costs[name] = {
            "trained_positions": round(_total(lines, "learner/tokens_per_s", "learner/step_s")),
            "sampled_tokens": round(_total(lines, "rollout/tokens_per_s", "rollout/set_s")),
            "steps": sum("learner/loss" in line for line in lines),
            "seconds_with_start": kept["seconds"],
            "seconds_of_iterations": round(sum(line.get("run/iteration_s", 0.0) for line in lines), 1),
        }
    answers = folder / "answers" / "answers.jsonl"  # SeqKD's, drawn once for all of its seeds
    if answers.exists():
        tokens = sum(json.loads(line)["tokens"] for line in answers.read_text(encoding="utf-8").splitlines())
        costs["answers"] = {"sampled_tokens": tokens, "seconds_with_start": phases["answers"]["seconds"]}
    return costs


def _total(lines: list[Row], rate: str, seconds: str) -> float:
    return sum(line[rate] * line[seconds] for line in lines if rate in line and seconds in line)

"""What the pilot asks: where is the gap between teacher and student wide enough to tell methods apart?"""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ...deploy.training.metrics_log import read_metrics

Row = dict[str, Any]
WIDE = 3.0
"""The gap, in spreads between training seeds, from which a study is worth its time."""
CHANCE = 50.0
"""Accuracy of a model that guesses between two labels."""
NO_DISTANCE = ("reverse_kl", "forward_kl", "ex_acc_err")
"""Metrics that compare with the teacher, who has nothing to itself."""
OF_LABELS = ("label_accuracy", "ece", "label_mass")
LENGTHS = ("10", "25", "40")
"""Answer lengths at which exposure bias is put into the tables."""


WORK = ("rollout/set_s", "teacher/set_s", "learner/step_s", "weights/publish_s", "weights/load_s")
"""Metrics whose seconds are the work itself."""
QUALITY = ("reverse_kl", "rouge_l", "eos_rate")
SHARES = (0.5, 0.75)


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
    curves, costs = _curves(folder), _costs(folder)
    return {
        "pair": pair,
        "tables": [t for t in tables if t is not None],
        "cost": costs,
        "curves": curves,
        "to_quality": _to_quality(curves, costs.get("answers", {})),
    }


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
    if teacher is None and key[1] in NO_DISTANCE:
        teacher = {"value": 0.0, "low": None, "high": None}
    spreads = {m: stdev(values) for m, values in by_method.items() if len(values) > 1}
    std = max(spreads.values(), default=None)
    gap = None if teacher is None else abs(teacher["value"] - start["value"])
    methods = {m: {"mean": mean(v), "spread": spreads.get(m), "values": v} for m, v in by_method.items()}
    at_chance = key[1] in OF_LABELS and guesses
    return {
        "data": key[0], "metric": key[1], "bucket": key[2],
        "teacher": _interval(teacher), "start": _interval(start),
        "methods": methods,
        "gap": gap, "largest_spread": std,
        "gap_in_spreads": gap / std if gap is not None and std else None,
        "tells_methods_apart": bool(gap is not None and std and gap >= WIDE * std and not at_chance),
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
        costs["answers"] = {"sampled_tokens": tokens, "seconds": phases["answers"]["seconds"]}
    return costs


def _curves(folder: Path) -> dict[str, list[Row]]:
    """For each run, what it had spent at each look at the validation prompts, and how good it was then.

    Seconds are those of sampling, scoring, learning and moving weights: no start-up, no validation.
    """
    curves = {}
    for phase in sorted(path.parent for path in folder.glob("*/metrics.jsonl")):
        if _method_of(phase.name) == (None, None):
            continue
        spent, points = dict.fromkeys(("seconds", "trained_positions", "sampled_tokens"), 0.0), []
        for line in read_metrics(phase):
            spent["seconds"] += sum(line.get(key, 0.0) for key in WORK)
            spent["trained_positions"] += _total([line], "learner/tokens_per_s", "learner/step_s")
            spent["sampled_tokens"] += _total([line], "rollout/tokens_per_s", "rollout/set_s")
            if "validation/reverse_kl" in line:
                quality = {key: line[f"validation/{key}"] for key in QUALITY}
                points.append({"step": line["step"], **{k: round(v, 1) for k, v in spent.items()}, **quality})
        curves[phase.name] = points
    return curves


def _to_quality(curves: dict[str, list[Row]], answers: Row) -> list[Row]:
    """What each method spends until its students' reverse KL is at half of the way, and at three quarters:
    from where all start to the lowest mean that any method ends with.

    SeqKD's answers are drawn once, before: their cost is added.
    """
    ends: dict[str, list[float]] = defaultdict(list)
    for run, points in curves.items():
        ends[str(_method_of(run)[0])].append(points[-1]["reverse_kl"])
    start = mean(points[0]["reverse_kl"] for points in curves.values())
    lowest = min(map(mean, ends.values()))
    found = []
    for fraction in SHARES:
        level = start + fraction * (lowest - start)
        for method in ends:
            reached = [
                at for run, points in curves.items()
                if _method_of(run)[0] == method and (at := _first_at(points, level)) is not None
            ]  # fmt: skip
            row: Row = {"reverse_kl": level, "way": fraction, "method": method}
            row |= {"runs": len(ends[method]), "reached": len(reached)}
            for key in ("seconds", "trained_positions", "sampled_tokens"):
                values = [at[key] for at in reached]
                if method == "seqkd":
                    values = [value + answers.get(key, 0.0) for value in values]
                row[key] = round(mean(values), 1) if len(values) == len(ends[method]) else None
            found.append(row)
    return found


def _first_at(points: list[Row], level: float) -> Row | None:
    """What was spent where the curve first comes down to the level; straight lines between the points."""
    for before, after in pairwise(points):
        if after["reverse_kl"] <= level < before["reverse_kl"]:
            fraction = (before["reverse_kl"] - level) / (before["reverse_kl"] - after["reverse_kl"])
            return {key: before[key] + fraction * (after[key] - before[key]) for key in after}
    return None


def _total(lines: list[Row], rate: str, seconds: str) -> float:
    return sum(line[rate] * line[seconds] for line in lines if rate in line and seconds in line)

"""The pilot's results as Markdown tables, for docs/development/lab-notes/pilot.md.

python -m minillm_ray.benchmarks.pilot.tables PILOT.json
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

Row = dict[str, Any]
SHOWN = (
    "rouge_l", "exact_match", "reverse_kl", "forward_kl", "lm_loss", "distinct_4", "ex_acc_err",
    "label_accuracy", "ece", "eos_rate", "answer_tokens", "repetition",
)  # fmt: skip
METHODS = ("sft", "kd", "seqkd", "gkd", "opd", "minillm")


def tables(report: Row) -> str:
    """All tables of all pairs."""
    return "\n\n".join(part for pair in report["pairs"] for part in _of_pair(pair))


def _of_pair(pair: Row) -> list[str]:
    return [f"### {pair['pair']}", _results(pair["tables"]), _costs(pair), _to_quality(pair["to_quality"])]


def _results(found: list[Row]) -> str:
    """Means over training seeds, and the spread between them (standard deviation)."""
    lines = _head("metric", "teacher", "start", *METHODS, "gap / spread", "tells apart")
    for metric in SHOWN:
        for one in (t for t in found if t["metric"] == metric):
            name = metric if one["bucket"] == "all" else f"{metric} {one['bucket']}"
            values = [one["methods"].get(m) for m in METHODS]
            told = [f"{_number(v['mean'])} ± {_number(v['std'])}" if v else "–" for v in values]
            ratio = one["gap_in_spreads"]
            verdict = "at chance" if one["uninformative_at_chance"] else "no"
            lines.append(
                _row(
                    name, _interval(one["teacher"]), _interval(one["start"]), *told,
                    "–" if ratio is None else f"{ratio:.1f}",
                    "yes" if one["tells_methods_apart"] else "–" if ratio is None else verdict,
                )
            )  # fmt: skip
    return "\n".join(lines)


def _costs(pair: Row) -> str:
    """What a run spent, means over training seeds."""
    lines = _head(
        "method", "steps", "trained positions", "sampled tokens", "seconds of work", "with start-up"
    )
    spent: dict[str, list[Row]] = defaultdict(list)
    for name, cost in pair["cost"].items():
        method, _, seed = name.rpartition("-")
        if seed.isdigit():
            work = pair["curves"][name][-1]["seconds"]
            spent[method].append(cost | {"work": work})
    for method in METHODS:
        columns = ("steps", "trained_positions", "sampled_tokens", "work", "seconds_with_start")
        lines.append(_row(method, *(f"{mean(one[c] for one in spent[method]):,.0f}" for c in columns)))
    answers = pair["cost"].get("answers")
    if answers:
        sampled, seconds = f"{answers['sampled_tokens']:,}", f"{answers['seconds']:,.0f}"
        lines.append(_row("answers of the teacher, once for all of seqkd", "", "", sampled, "", seconds))
    return "\n".join(lines)


def _to_quality(rows: list[Row]) -> str:
    """What it took to come half of the way, and three quarters."""
    lines = _head(
        "reverse KL at most", "method", "runs there", "seconds", "trained positions", "sampled tokens"
    )
    for row in sorted(rows, key=lambda r: (r["way"], METHODS.index(r["method"]))):
        costs = ("seconds", "trained_positions", "sampled_tokens")
        told = ["–" if row[c] is None else f"{row[c]:,.0f}" for c in costs]
        there = f"{row['reached']} of {row['runs']}"
        lines.append(_row(f"{row['reverse_kl']:.3f} ({row['way']:.0%})", row["method"], there, *told))
    return "\n".join(lines)


def _head(*names: str) -> list[str]:
    return [_row(*names), _row(*["---"] * len(names))]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _interval(row: Row | None) -> str:
    if row is None:
        return "–"
    low, high = row["low"], row["high"]
    inside = "" if low is None else f" [{_number(low)}, {_number(high)}]"
    return f"{_number(row['value'])}{inside}"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


if __name__ == "__main__":
    print(tables(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))

"""All benchmarks, or those that are named: python -m minillm_ray.benchmarks [race parts head padding ...].

Nothing else should run meanwhile. Ratios, all of this one call, go to benchmarks/results/latest.json: the
worst of the cells each, then by cell, beside the raw times behind them and the hardware.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from . import fused_head
from .data_reading import data_reading
from .ground import CELLS, Cell, Files, Values, files
from .padding import padding, slots_of
from .parts import parts
from .quality.summary import RATIOS
from .quality.summary import RESULTS as QUALITY
from .race import CONTENDERS, race

LATEST = Path(__file__).parent / "results" / "latest.json"
HEAD, BODY, TEACHER_BODY = 49152 * 576, 10 * 3_540_096, 30 * 3_540_096
"""Weights of the student's (and the teacher's) output layer, of the student's layers, of the teacher's."""
WHAT = ("race", "parts", "head", "padding", "start", "data", "quality")
COSTS = ("mixing_cost", "iteration_vs_sum_of_parts", "weight_update_vs_load", "weight_update_share")
"""Ratios that are worse where they are larger."""


def main() -> None:
    """Measure what is asked for and merge it into what is known."""
    args = _arguments()
    raw: Values = {}
    report: Values = {}
    for what in args.what:
        began = time.monotonic()
        if what == "head":
            subprocess.run([sys.executable, fused_head.__file__], check=False, stdout=subprocess.DEVNULL)
            raw["head"] = json.loads(fused_head.RESULTS.read_text(encoding="utf-8"))
        elif what == "quality":
            command = [sys.executable, "-m", f"{__package__}.quality", "--environments", str(args.output_dir)]
            command += ["--output-dir", str(args.output_dir / "quality")]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            known = json.loads(QUALITY.read_text(encoding="utf-8"))
            raw["quality"] = {key: value for key, value in known.items() if key != "runs"}
        elif what == "start":
            raw["start"] = start()
        elif what == "padding":
            raw["padding"] = padding()
        elif what == "data":
            raw["data"] = data_reading(args.output_dir / "data", files(args.output_dir).student)
        else:
            for name in args.cells:
                raw.setdefault(what, {})[name] = _of_cell(what, CELLS[name], args)
        print(f"{what}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        report = ratios(raw) | {
            "machine": fused_head.hardware() | {"at": time.strftime("%Y-%m-%d")},
            "raw": raw,
        }
        LATEST.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in report.items() if key != "raw"}, indent=1))


def _of_cell(what: str, cell: Cell, args: argparse.Namespace) -> Values:
    ground: Files = files(args.output_dir)
    if what == "race":
        return race(cell, ground, args.output_dir, ranks=args.ranks, only=args.only)
    return parts(cell, ground)


def ratios(raw: Values) -> Values:
    """The numbers of a report from the times behind them: the worst of the cells, and `by_cell`."""
    by_cell = _by_cell(raw)
    found: Values = {
        key: (max if key in COSTS else min)(of_cell.values()) for key, of_cell in by_cell.items()
    }
    if "head" in raw:
        found["fused_peak_memory"] = raw["head"]["memory_ratio"]
    if "padding" in raw:
        found["padding_waste"] = max(one["waste"] for one in raw["padding"].values())
    if "start" in raw:
        found["import_vs_python"] = raw["start"]["import_s"] / raw["start"]["python_s"]
    if "data" in raw:
        ours, bare = raw["data"]["ours"], raw["data"]["bare"]
        found |= {f"data_{what}_vs_bare": ours[what] / bare[what] for what in ("seconds", "bytes")}
    if "quality" in raw:
        found |= {key: raw["quality"][key] for key in RATIOS}
    return found | {"by_cell": by_cell}


def _by_cell(raw: Values) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for cell, runs in raw.get("race", {}).items():
        speed = {name: run["trained_tokens_per_s"] for name, run in runs.items()}
        for key, our_name, their_name in (
            ("race_distillation", "ours_reverse_kl", "distillation"),
            ("race_gkd", "ours_reverse_kl", "gkd"),
            ("race_minillm_4_epochs", "ours_minillm", "minillm"),
        ):
            if our_name in speed and their_name in speed:
                found.setdefault(key, {})[cell] = speed[our_name] / speed[their_name]
    for cell, alone in raw.get("parts", {}).items():
        runs = raw.get("race", {}).get(cell, {})
        if "ours_logprobs" in runs:
            for key, value in _against_bare(alone, runs["ours_logprobs"], CELLS[cell]).items():
                found.setdefault(key, {})[cell] = value
        if "ours_minillm" in runs:
            both = alone["sample_student"]["seconds"] + alone["sample_teacher"]["seconds"]
            found.setdefault("mixing_cost", {})[cell] = runs["ours_minillm"]["parts"]["rollout/set_s"] / both
        for key, value in _of_peak(alone["peak"]["gflops"], runs, CELLS[cell]).items():
            found.setdefault(key, {})[cell] = value
    return found


def _against_bare(alone: Values, run: Values, cell: Cell) -> Values:
    ours, step_s = run["parts"], run["parts"]["learner/step_s"]
    moving = ours["weights/publish_s"] + ours["weights/load_s"]
    bare_sum = sum(alone[name]["seconds"] for name in ("sample_student", "score", "step", "load"))
    return {
        "rollout_vs_bare": alone["sample_student"]["seconds"] / ours["rollout/set_s"],
        "scoring_vs_bare": alone["score"]["seconds"] / ours["teacher/set_s"],
        "learner_vs_bare": alone["step"]["seconds"] / step_s,
        "iteration_vs_sum_of_parts": run["seconds"] / bare_sum,
        "weight_update_vs_load": moving / alone["load"]["seconds"],
        "weight_update_share": moving / run["seconds"],
    }


def _of_peak(gflops: float, runs: Values, cell: Cell) -> Values:
    """What the products with weights in each part take of the machine's rate for one square product."""
    slots, drawn = slots_of(cell, max_packed_len=cell.answers), cell.answers * cell.tokens
    # A product with a weight is two operations forward and four backward.
    student, teacher = 2 * (BODY * slots + HEAD * drawn), 2 * (TEACHER_BODY * slots + HEAD * drawn)
    step = 6 * (BODY * slots_of(cell) + HEAD * drawn) + 2 * HEAD * drawn  # the teacher's head is read in it
    found: Values = {}
    if "ours_logprobs" in runs:
        run = runs["ours_logprobs"]
        found |= {
            "rollout_peak_share": student / run["parts"]["rollout/set_s"],
            "scoring_peak_share": teacher / run["parts"]["teacher/set_s"],
            "learner_peak_share": step / run["parts"]["learner/step_s"],
            "iteration_peak_share": (student + teacher + step) / run["seconds"],
        }
    if "ours_minillm" in runs:
        found["mixing_peak_share"] = (student + teacher) / runs["ours_minillm"]["parts"]["rollout/set_s"]
    return {key: 1e-9 * per_second / gflops for key, per_second in found.items()}


def start(rounds: int = 9) -> Values:
    """Seconds of an empty Python and of one that imports the package."""

    def seconds(code: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - began

    pairs = [(seconds("pass"), seconds("import minillm_ray")) for _ in range(rounds)]
    empty, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {"python_s": empty, "import_s": ours}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m minillm_ray.benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="*", choices=[*WHAT, []], help="by default all")
    parser.add_argument(
        "--output-dir", type=Path, default=Path("runs/bench"), help="models, environments and runs"
    )
    parser.add_argument("--cells", nargs="+", choices=tuple(CELLS), default=list(CELLS))
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--ranks", type=int, default=1, help="learner ranks of ours; they share the cores")
    args = parser.parse_args()
    args.what = args.what or list(WHAT)
    args.output_dir = args.output_dir.absolute()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    main()

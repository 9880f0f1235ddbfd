"""Time to quality: python -m minillm_ray.benchmarks.quality [--output-dir runs/bench/quality]

Seconds of training and sampled answer tokens until a student's reverse KL on held-out prompts is THRESHOLD,
from the same start: our whole system with the paper's objective (`ours_minillm`), our whole system with the
reverse KL on fresh answers (`ours_fresh`), and TRL's DistillationTrainer (`distillation`). Teacher, student
and prompts are the demonstration's. A learning rate is searched for each, in the same way, with a seed of its
own; then three seeds at the best one. Start-up and looking at students take no time of any contender's clock.

Every run that is done leaves a file in OUT and is not made again unless settings or code change. Nothing else
should run meanwhile. Results go to benchmarks/results/time_to_quality.json.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..demo.tasks import FOLDER, prompt_of, read
from ..fused_head import hardware
from ..ground import Values
from ..race import TRL, environment
from . import contest
from .contest import MAX_NEW_TOKENS, OURS, OWN, Entry, Start
from .summary import FIGURE, RESULTS, draw, summary

THRESHOLD = 0.6
"""Nats per token. The start has 0.92, and the demonstration's longer run ends at 0.36."""
RATES = (1e-3, 3e-4, 3e-3)
"""Learning rates of the search, half a decade apart, likeliest first; more where the best is at an edge."""
LOWEST, HIGHEST = 3e-5, 3e-2
SEARCH_SEED, SEEDS = 0, (1, 2, 3)
CAP_S = 180.0
"""Seconds of training after which a run has not come to the threshold."""
PATIENCE = 1.1
"""In the search a run ends at so many times the best run's seconds: it will hardly win any more."""


@dataclass(frozen=True, slots=True)
class Ring:
    """Where contests take place, and what is left of those that are over."""

    start: Start
    out: Path
    python: Path
    measure: Callable[[Path], float]

    def run(self, entry: Entry, cap_s: float) -> Values:
        """The contest of this entry, or what is known of it."""
        asked = contest.settings(entry, self.start, self.out / str(entry) / "run")
        asked |= {"every": OWN[entry.name]["every"], "threshold": THRESHOLD, "held": contest.HELD}
        asked["source"] = source(entry.name)
        kept = self.out / f"{entry}.json"
        if kept.exists():
            known: Values = json.loads(kept.read_text(encoding="utf-8"))
            if known["settings"] == asked and (known["reached"] or known["cap_s"] >= cap_s):
                return known
        found = contest.contest(
            entry, self.start, self.out / str(entry),
            python=self.python, measure=self.measure, threshold=THRESHOLD, cap_s=cap_s,
        )  # fmt: skip
        of = {"name": entry.name, "lr": entry.lr, "seed": entry.seed, "cap_s": cap_s}
        of["at"] = time.strftime("%Y-%m-%d %H:%M")  # what is kept may come from another hour of the machine
        found = {**of, "settings": asked, **found}
        kept.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return found


def source(name: str) -> int:
    """A sum over the files that make the run what it is, so that new code makes it anew."""
    here = Path(__file__).parent
    files = [here / f"{one}.py" for one in ("contest", "exam", "ours" if name in OURS else "theirs")]
    if name in OURS:
        folders = ("common", "actors", "learner", "deploy")
        files += [path for one in folders for path in sorted((here.parents[1] / one).rglob("*.py"))]
    return zlib.crc32(b"".join(path.read_bytes() for path in files))


def search(ring: Ring, name: str) -> list[Values]:
    """Runs of one contender at several rates, all with one seed."""
    runs: dict[float, Values] = {}
    waiting = list(RATES)
    while waiting:
        best = min(map(seconds_of, runs.values()), default=math.inf)
        lr = waiting.pop(0)
        runs[lr] = ring.run(Entry(name=name, lr=lr, seed=SEARCH_SEED), min(CAP_S, PATIENCE * best))
        if not waiting:
            waiting = [one for one in beside(best_rate(list(runs.values())), list(runs)) if one not in runs]
    return list(runs.values())


def best_rate(runs: Sequence[Values]) -> float:
    """The rate that came to the threshold in the fewest steps; where none did, the one that ended nearest.

    A step takes as long at any rate, so steps tell rates apart and not the machine's better minutes.
    """
    return min(runs, key=lambda run: (steps_of(run), _or_last(run["looks"][-1]["reverse_kl"])))["lr"]


def _or_last(value: float) -> float:
    """A value to be sorted by; what is no number comes last."""
    return value if math.isfinite(value) else math.inf


def beside(best: float, rates: Sequence[float]) -> list[float]:
    """The next rate beyond `best` if that is the lowest or the highest of `rates`; none past the limits."""
    halves = round(2 * math.log10(best / 1e-3))
    found = [half_decade(halves - 1)] if best == min(rates) else []
    found += [half_decade(halves + 1)] if best == max(rates) else []
    return [rate for rate in found if LOWEST <= rate <= HIGHEST]


def half_decade(halves: int) -> float:
    """1e-3 times so many half decades, as 1 or 3 in its first figure."""
    return float(f"{(3 if halves % 2 else 1)}e{halves // 2 - 3}")


def steps_of(run: Values) -> float:
    """Optimiser steps to the threshold; infinite if it was never reached."""
    return run["reached"]["step"] if run["reached"] else math.inf


def seconds_of(run: Values) -> float:
    """Seconds to the threshold; infinite if it was never reached."""
    return run["reached"]["seconds"] if run["reached"] else math.inf


def main() -> None:
    """Search, then three seeds of each; write what came of it."""
    args = _arguments()
    from .exam import Exam

    prompts = args.output_dir / "prompts.jsonl"
    lines = [json.dumps({"instruction": prompt_of(row)}) + "\n" for row in read("prompts")]
    prompts.write_text("".join(lines), encoding="utf-8")
    start = Start(FOLDER / "student", FOLDER / "teacher", prompts)
    exam = Exam(start.teacher, [prompt_of(row) for row in read("heldout")], MAX_NEW_TOKENS)
    ring = Ring(start, args.output_dir, environment(args.environments, TRL["distillation"]), exam.reverse_kl)
    searches = {name: search(ring, name) for name in OWN}
    runs: dict[str, list[Values]] = {name: [] for name in OWN}
    for seed in SEEDS:
        for name in OWN:
            entry = Entry(name=name, lr=best_rate(searches[name]), seed=seed)
            runs[name].append(ring.run(entry, CAP_S))
    report = {
        **summary(searches, runs),
        "threshold": THRESHOLD,
        "batch_size": contest.BATCH_SIZE,
        "optimizer": contest.OPTIMIZER,
        "own": OWN,
        "machine": hardware() | {"at": time.strftime("%Y-%m-%d"), "trl": TRL["distillation"]},
        "runs": [told(run) for several in (searches, runs) for name in OWN for run in several[name]],
    }
    args.results.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    draw(runs, THRESHOLD, args.figure)
    print(json.dumps({key: value for key, value in report.items() if key != "runs"}, indent=1))


def told(run: Values) -> Values:
    """A run as results tell it: without its settings, which name folders of this machine."""
    return {key: value for key, value in run.items() if key != "settings"}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m minillm_ray.benchmarks.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output-dir", type=Path, default=Path("runs/bench/quality"), help="runs, kept")
    parser.add_argument(
        "--environments", type=Path, default=Path("runs/bench"), help="where TRL's is, or goes"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--figure", type=Path, default=FIGURE, help="a picture of the curves")
    args = parser.parse_args()
    args.output_dir, args.environments = args.output_dir.absolute(), args.environments.absolute()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    main()

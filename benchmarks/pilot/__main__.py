"""The pilot of the study in one command: python -m minillm_ray.benchmarks.pilot [--pair dolly stories]

Six methods by three training seeds on two pairs of teacher and student, all with as many trained positions;
then one evaluation of each pair. Every step is kept: the same command goes on where it was stopped. Results
go to OUT/pilot.json. Reads data that the project does not hold from --shared.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import time
from pathlib import Path

import yaml
from rich.console import Console

from ...deploy.models.pretrain import Shape, pretrain
from ...deploy.pipeline.chain import load_chain
from ...deploy.pipeline.runner import run_chain
from ...deploy.training.launch import resume_run
from . import chains
from .data import prepare_dolly, prepare_stories
from .verdict import verdict

TEACHER = Shape(layers=6, width=256, vocabulary=4000)
STUDENT = Shape(layers=3, width=128, vocabulary=4000)
BUDGETS = {"stories": 200_000, "dolly": 40_000}
"""Trained student positions of each run: some 4,000 answers, stories being four times as long."""


def main() -> None:
    """Run both pairs, or those that are named."""
    args = _arguments()
    console, began = Console(), time.monotonic()
    found = []
    for pair in args.pair:
        asked = chains.Asked(
            budget=args.budget or BUDGETS[pair],
            **{key: getattr(args, key) for key in chains.Asked.__slots__ if key != "budget"},
        )
        out, data = args.output_dir / pair, args.output_dir / "data" / pair
        if pair == "dolly":
            models = _tiny_models(args, data, console)
            tree = chains.dolly(asked, str(out), str(data), str(models))
        else:
            teacher = args.shared / "models" / "stories260K"
            if not (data / "cut" / "config.json").exists():
                prepare_stories(args.shared, data)
            tree = chains.stories(asked, str(out), str(data), str(teacher))
        file = args.output_dir / f"{pair}.yaml"
        file.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
        run_chain(load_chain(file), console)
        found.append(verdict(pair, out) | {"asked": dataclasses.asdict(asked)})
    report = {
        "machine": {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "seconds_of_this_call": round(time.monotonic() - began), "pairs": found,
    }  # fmt: skip
    (args.output_dir / "pilot.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    console.print(
        f"results: {args.output_dir / 'pilot.json'}; pictures: {args.output_dir}/*/eval/plots",
        highlight=False,
    )


def _tiny_models(args: argparse.Namespace, data: Path, console: Console) -> Path:
    """A teacher and a student with one tokenizer, from nothing; kept once they are made."""
    models = args.output_dir / "models"
    texts = prepare_dolly(args.shared, data)
    for name, shape, steps in (("teacher", TEACHER, 150), ("student", STUDENT, 150)):
        if (models / name / "last").exists():
            continue
        if (models / name / "metrics.jsonl").exists():
            resume_run(models / name, console)
        else:
            pretrain(
                texts, models / name, shape,
                steps=20 if args.small else steps,
                tokenizer=None if name == "teacher" else models / "teacher" / "best",
                overrides=["learner.world_size=2"],
                console=console,
            )  # fmt: skip
    return models


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m minillm_ray.benchmarks.pilot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output-dir", type=Path, default=Path("runs/pilot"))
    parser.add_argument(
        "--shared", type=Path, default=Path(os.environ.get("MINILLM_SHARED", "../shared")) / "data"
    )
    parser.add_argument("--pair", nargs="+", choices=("dolly", "stories"), default=["stories", "dolly"])
    parser.add_argument(
        "--budget", type=int, help=f"trained student positions of each run; by default {BUDGETS}"
    )
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--train-seeds", type=int, default=3)
    parser.add_argument("--eval-seeds", type=int, default=2)
    parser.add_argument("--every", type=int, default=32, help="optimiser steps between two validations")
    parser.add_argument(
        "--small", action="store_true", help="a few steps of everything, to see that it works"
    )
    args = parser.parse_args()
    args.output_dir, args.shared = args.output_dir.absolute(), args.shared.absolute()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    main()

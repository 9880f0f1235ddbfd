"""The last screen of the demonstration: what came of it, and what to type next."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from .. import recipes as recipes_folder
from ..cli.report import quality_table
from ..evaluation.bootstrap import Interval
from ..training.measurement import Measurement

START, CONTROL, OURS = "student, start", "control (more SFT)", "MiniLLM"
MODELS = ("teacher", START, CONTROL, OURS)
"""Rows of the table, in order."""


def last_screen(
    out: Path, models: Mapping[str, Measurement], prompts: Sequence[str], seconds: float
) -> Group:
    """The table, the first answers, what the demonstration set out to show, and what to type next.

    `models` by the names of `MODELS`; `prompts` are the first held-out ones.
    """
    answers = Table(title="the first held-out prompts", show_lines=True)
    answers.add_column("prompt", ratio=2)
    for name in models:
        answers.add_column(name, ratio=1)
    for index, prompt in enumerate(prompts):
        said = [m.examples[index] for m in models.values()]
        answers.add_row(*map(escape, (prompt, *said)))
    return Group(
        quality_table(models),
        answers,
        f"{seconds:.0f} s in all. Plots: {out / 'plots'}; rollouts: {out / 'rollouts'};"
        f" numbers: {out / 'summary.json'}",
        *verdicts(models),
        *_next_commands(out),
    )


def verdicts(models: Mapping[str, Measurement]) -> list[str]:
    """What the demonstration set out to show, and whether this run shows it."""
    start, control, ours = (models[name] for name in (START, CONTROL, OURS))
    (kl_start, text_start), (kl_control, text_control), (kl_ours, text_ours) = (
        (_known(m.reverse_kl()), _known(m.rouge_l())) for m in (start, control, ours)
    )
    halved = kl_ours.mean <= kl_start.mean / 2
    rose = text_ours.mean >= text_start.mean + 5 and text_ours.disjoint_from(text_start)
    below = kl_ours.mean < kl_control.mean and kl_ours.disjoint_from(kl_control)
    ahead = "MiniLLM" if text_ours.mean > text_control.mean else "the control"

    def said(held: bool) -> str:
        return "[green]holds[/]" if held else "[red]does not hold[/]"

    return [
        f"  {said(halved)}: the reverse KL at least halves",
        f"  {said(rose)}: ROUGE-L rises by 5 or more, intervals apart",
        f"  {said(below)}: the reverse KL ends below the control's, intervals apart"
        f" (on ROUGE-L {ahead} is ahead)",
    ]


def _known(interval: Interval | None) -> Interval:
    assert interval is not None, "the demo measures all of its models on prompts with references"
    return interval


def _next_commands(out: Path) -> list[str]:
    here = Path(sys.executable).parent
    recipes = Path(recipes_folder.__file__).parent
    # vLLM compiles a little even in eager mode; without a compiler it must be told not to.
    quiet = "" if shutil.which("g++") else "TORCHDYNAMO_DISABLE=1 "
    return [
        "Next, a run on a real model (SmolLM2-135M into 10 of its layers; give it your own prompts):",
        f"  {here}/minillm fetch-model smollm2",
        f"  {here}/minillm cut-model models/smollm2 10 models/smollm2-cut",
        f"  {here}/minillm train {recipes}/smollm2_start.yaml data.train.path=PROMPTS.jsonl",
        "or serve the student just made:",
        f"  {quiet}{here}/vllm serve {out / 'best'} --dtype float32 --enforce-eager",
    ]

"""What a finished run says on the last screen."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group
from rich.table import Table

from ..evaluation.bootstrap import Interval
from ..pipeline.generate import Generated
from ..preflight.memory import GIB
from ..training.driver import Result
from ..training.measurement import Measurement


def cell(interval: Interval | None, digits: int) -> str:
    """A mean with its 95 % interval."""
    if interval is None:
        return "-"
    return f"{interval.mean:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def quality_table(rows: Mapping[str, Measurement | None]) -> Table:
    """Who answers how well, one row per model."""
    table = Table(title="held-out prompts, answers drawn by each model alone (95 % bootstrap intervals)")
    for column in ("", "reverse KL, nats/token", "ROUGE-L x 100", "exact match, %"):
        table.add_column(column, justify="left" if not column else "right")
    for name, measured in rows.items():
        if measured is not None:
            table.add_row(
                name,
                cell(measured.reverse_kl(), 3),
                cell(measured.rouge_l(), 1),
                cell(measured.exact_match(), 1),
            )
    return table


def report(result: Result) -> Group:
    """The end of `minillm train`: numbers, where things lie, and what to type next."""
    path = result.folder.path
    held = ", ".join(f"{name} {size / GIB:.2f}" for name, size in result.memory.items())
    lines = [
        f"{result.steps} optimiser steps in {result.seconds:.0f} s; best student after {result.best_step}",
        f"  best student   {result.folder.best}   (vllm serve {result.folder.best})",
        f"  plots          {path / 'plots'}",
        f"  rollouts       {result.folder.rollouts}   (pandas.read_parquet)",
        f"  metrics        {path / 'metrics.jsonl'}   (tensorboard --logdir {path / 'tensorboard'})",
        f"  peak memory    {held} GiB",
    ]
    table = quality_table({"teacher": result.teacher, "before": result.before, "after": result.after})
    return Group(table, *lines) if table.row_count else Group(*lines)


def report_answers(made: Generated) -> str:
    """The end of `minillm generate`."""
    joined = made.joined
    return (
        f"{joined.written:,} answers in {made.file}\n"
        f"  {joined.answers:,} drawn, {joined.tokens:,} tokens, {joined.cut:,} cut; {made.seconds:.0f} s\n"
        f"  learn from them: minillm sft RUN.yaml data.train.path={made.file}"
    )

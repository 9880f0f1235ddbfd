"""The plan of a run as a person reads it: models, processes, memory, notes."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from .check import Plan
from .memory import GIB, MIB, PARTS


def render(plan: Plan) -> RenderableType:
    """The plan as a person reads it, in 80 columns."""
    columns = ("", "parameters", "layers", "width", "vocabulary", "context")
    models = Table(*columns, box=None, pad_edge=False)
    models.add_column("path", overflow="fold")
    for name, facts in (("student", plan.student), ("teacher", plan.teacher)):
        if facts is not None:
            sizes = (facts.parameters, facts.layers, facts.hidden, facts.vocabulary)
            models.add_row(name, *(f"{n:,}" for n in sizes), str(facts.context or "any"), facts.path)
    everything = plan.store.total + sum(p.count * p.memory.total for p in plan.processes)
    records = ", ".join(f"{count:,} {name}" for name, count in plan.data.records.items())
    return Group(
        models,
        "",
        _process_table(plan),
        f"About {everything / GIB:.2f} GiB in all. Parameters are counted, activations estimated; a learner's"
        " teacher is only the teacher's output layer; buckets are those of rank 0.",
        f"Records: {records}. Words that the models share: {plan.vocabulary:,}. Longest prompt with answer:"
        f" {plan.max_tokens} tokens.",
        *(f"[yellow]Note:[/] {escape(note)}." for note in plan.notes),
        "[green]This run can start.[/]",
    )


def _process_table(plan: Plan) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.title, table.title_justify = f"On {plan.where}: what each process reserves and holds", "left"
    table.add_column("each", no_wrap=True)
    for process in plan.processes:
        table.add_column(f"{process.count} x {process.role}", justify="right", no_wrap=True)
    table.add_column("object store", justify="right", no_wrap=True)
    table.add_row("CPUs", *(f"{p.cpus:g}" for p in plan.processes))
    if any(p.gpus for p in plan.processes):
        table.add_row("GPUs", *(f"{p.gpus:g}" for p in plan.processes))
    threads = ("all" if p.threads is None else str(p.threads) for p in plan.processes)
    table.add_row("threads", *threads, end_section=True)
    held = [p.memory for p in plan.processes] + [plan.store]
    for part in PARTS:
        table.add_row(part, *(_size(m.parts.get(part, 0)) for m in held))
    table.add_section()
    table.add_row("total", *(_size(m.total) for m in held))
    return table


def _size(num_bytes: int) -> str:
    if not num_bytes:
        return ""
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= GIB else f"{num_bytes / MIB:.0f} MiB"

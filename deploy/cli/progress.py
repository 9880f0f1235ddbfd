"""What a person sees while a run works: two live lines on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from ...common.types import BatchSummary, Dropped

LOG_EVERY_S = 10.0
FIRST = ("reverse KL", "ROUGE-L")
"""Facts that come before the others."""


class Progress:
    """A live line of named facts. Use as a context manager."""

    def __init__(self, console: Console):
        self.console = console
        self._facts: dict[str, str] = {}
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._logged = 0.0
        self._began = time.monotonic()
        self._steps = (0, 0.0, time.monotonic())
        self._left = ""
        self._phase = ""

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def phase(self, name: str) -> None:
        """What is being done now."""
        self._facts["phase"] = self._phase = name
        self._show()

    def count(self, done: int, total: int) -> None:
        """How much of the phase is done."""
        self._facts["phase"] = f"{self._phase} {done:,}/{total:,}"
        self._show()

    def start_steps(self, done: int, total: int, of_tokens: float | None = None) -> None:
        """Count steps from here: `done` of `total` are behind us; time left is reckoned from now.

        `of_tokens`: which share of its tokens the run has used, where they may end it before its steps do.
        """
        self._steps = (total, max(done / total, of_tokens or 0.0), time.monotonic())
        self.show(step=_step(done, total, of_tokens))

    def step(self, done: int, of_tokens: float | None = None) -> None:
        """So many steps are done, and such a share of the run's tokens is used."""
        total, first, since = self._steps
        if not total:
            return
        self._facts["step"] = _step(done, total, of_tokens)
        fraction = min(1.0, max(done / total, of_tokens or 0.0))
        if fraction > first:
            left = (time.monotonic() - since) / (fraction - first) * (1.0 - fraction)
            self._left = f"ETA {clock(left)}"
        self._show()

    def show(self, **facts: str) -> None:
        """Set facts of the line; an underscore in a name is shown as a space."""
        self._facts |= {name.replace("_", " "): value for name, value in facts.items()}
        self._show()

    def say(self, message: str) -> None:
        """A line that stays."""
        self.console.print(message, highlight=False, markup=False)

    def _show(self) -> None:
        facts = dict(self._facts)
        lines = live_lines(facts, self._left, clock(time.monotonic() - self._began))
        if self.console.is_terminal:
            self._live.update(Text("\n".join(lines).strip(), overflow="ellipsis", no_wrap=True))
        elif time.monotonic() - self._logged > LOG_EVERY_S:
            self._logged = time.monotonic()
            self.console.print(" · ".join(filter(None, lines)), highlight=False, soft_wrap=True)


class AnswerCounter:
    """Shows how many of a phase's answers are done, and tells of those that were dropped, and why."""

    def __init__(
        self,
        progress: Progress,
        total: int,
        on_drop: Callable[[Dropped], None] | None = None,
        *,
        done: int = 0,
    ):
        """`on_drop` keeps each drop where all are listed; `done` of the `total` are behind us."""
        self._progress, self._total, self._on_drop, self._done = progress, total, on_drop, done

    def __call__(self, summary: BatchSummary) -> None:
        """Some more are done."""
        self._done += len(summary)
        self._progress.count(self._done, self._total)
        if self._on_drop is not None:
            for drop in summary.dropped:
                self._on_drop(drop)
        for line in summary_of(summary.dropped, recorded=self._on_drop is not None):
            self._progress.say(line)


def summary_of(drops: Sequence[Dropped], *, recorded: bool = True) -> list[str]:
    """A line for each kind of drop, with how many there are and the first of them.

    `recorded`: whether a run's metrics.jsonl lists them all.
    """
    where = "; all are in metrics.jsonl" if recorded else ""
    kinds: dict[tuple[str, str, str], list[Dropped]] = {}
    for drop in drops:
        kinds.setdefault((drop.prompt_id.split("/")[0], drop.stage, drop.reason), []).append(drop)
    return [
        f"dropped {len(found)} of {source} at {stage}: {reason} (first: {found[0].prompt_id},"
        f" {found[0].detail}){where}"
        for (source, stage, reason), found in kinds.items()
    ]


def _step(done: int, total: int, of_tokens: float | None) -> str:
    return f"{done}/{total}" if of_tokens is None else f"{done} ({min(1.0, of_tokens):.0%} of tokens)"


def live_lines(facts: Mapping[str, str], left: str, spent: str) -> tuple[str, str]:
    """How far it is, and how well it goes: two lines that fit a small terminal."""
    rest = dict(facts)
    step = f"step {rest.pop('step')}" if "step" in rest else ""
    far = [rest.pop("phase", ""), step, left, spent]
    well = [f"{name} {rest.pop(name)}" for name in FIRST if name in rest]
    well += [f"{name} {value}" for name, value in rest.items()]
    return " · ".join(part for part in far if part), " · ".join(well)


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    hours, rest = divmod(int(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

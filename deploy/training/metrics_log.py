"""metrics.jsonl: one line for each record of a run's numbers and each event, which sinks are given too."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...common.errors import DataError
from ...common.metrics import CATALOGUE
from ...common.types import Dropped
from .sinks import MetricsSink

FILE = "metrics.jsonl"


class MetricsLog:
    """Keeps the numbers of one run directory, and hands them on to sinks."""

    def __init__(self, folder: Path, sinks: Sequence[MetricsSink] = ()):
        """Adds to what is in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / FILE).open("a", encoding="utf-8")
        self._sinks = list(sinks)
        self._set: dict[str, int] = {}

    def begin_set(self, number: int) -> None:
        """Lines from now on are of this set of answers, which `drop_after` goes by.

        A step is not enough: what is drawn for a set is recorded at the step behind the set before.
        """
        self._set = {"set": number}

    def record(self, step: int, values: Mapping[str, float], **stamps: Any) -> None:
        """Keep the values of an optimiser step. A name that is not in the catalogue is a KeyError."""
        for name in values:
            CATALOGUE[name]
        self._write({"at": _now(), "step": step, **self._set, **stamps, **values})
        for sink in self._sinks:
            sink.record(step, values)

    def event(self, kind: str, **facts: Any) -> None:
        """Keep something that happened: a drop, a warning, a lost actor."""
        self._write({"at": _now(), "event": kind, **self._set, **facts})
        for sink in self._sinks:
            sink.event(kind, facts)

    def dropped(self, drop: Dropped) -> None:
        """Keep what was dropped, and why."""
        self.event("dropped", **asdict(drop))

    def close(self) -> None:
        """Write out what is left."""
        self._file.close()
        for sink in self._sinks:
            sink.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def _now() -> float:
    return round(time.time(), 3)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Every line of a run's metrics, oldest first, events left out. Raises DataError at a damaged line."""
    return [row for _, row in _lines(folder / FILE) if "event" not in row]


def drop_after(folder: Path, step: int, sets: int | None = None) -> None:
    """Drop lines of steps after `step`, and of any but the first `sets` sets of answers: a resumed run writes
    them anew. Lines without a set are from before the first one, or of an older version."""
    path = folder / FILE
    if not path.exists():
        return
    end = math.inf if sets is None else sets
    kept = [line for line, row in _lines(path) if row.get("step", 0) <= step and row.get("set", -1) < end]
    path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line as text and as what it says. One without its end is still being written, or was cut off
    when its process died, and is left out."""
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            return
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(_damaged(path, number, line, "no JSON")) from error
        if not isinstance(row, dict) or not ("event" in row or isinstance(row.get("step"), int)):
            raise DataError(_damaged(path, number, line, "neither a step's values nor an event"))
        yield line.rstrip("\n"), row


def _damaged(path: Path, number: int, line: str, what: str) -> str:
    return f"{path}, line {number}, is {what}: {line.strip()[:60]!r}; delete that line, the others are whole"

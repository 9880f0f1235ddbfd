"""Where a run's numbers go: JSON Lines, TensorBoard, and Ray's metrics endpoint, all from one call."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.errors import DataError
from ...common.metrics import CATALOGUE
from ...common.types import Dropped

if TYPE_CHECKING:
    from ray.util.metrics import Gauge


class Recorder:
    """Keeps the numbers of one run folder."""

    def __init__(self, folder: Path, run: str, after: int | None = None):
        """Add to what is in `folder`; curves of a resumed run go on `after` its checkpoint's step."""
        # Here and in _gauge, so that who only reads metrics waits for neither torch nor Ray.
        from torch.utils.tensorboard.writer import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._board = SummaryWriter(
            str(folder / "tensorboard"), purge_step=None if after is None else after + 1
        )
        self._gauges: dict[str, Gauge] = {}
        self._run = run

    def record(self, step: int, values: Mapping[str, float], **stamps: Any) -> None:
        """Keep the values of an optimiser step; names are those of the catalogue."""
        line = {"at": round(time.time(), 3), "step": step, **stamps, **values}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
            self._gauge(name).set(value)

    def event(self, kind: str, **facts: Any) -> None:
        """Keep something that happened: a drop, a warning, a lost actor."""
        self._file.write(json.dumps({"at": round(time.time(), 3), "event": kind, **facts}) + "\n")
        self._file.flush()

    def dropped(self, drop: Dropped) -> None:
        """Keep what was dropped, and why."""
        self.event("dropped", **asdict(drop))

    def close(self) -> None:
        """Write out what is left."""
        self._file.close()
        self._board.close()

    def _gauge(self, name: str) -> Gauge:
        from ray.util.metrics import Gauge

        if name not in self._gauges:
            gauge = Gauge("minillm_" + name.replace("/", "_"), CATALOGUE[name], tag_keys=("run",))
            gauge.set_default_tags({"run": self._run})
            self._gauges[name] = gauge
        return self._gauges[name]


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Every line of a run's metrics, oldest first, events left out. Raises DataError at a damaged line."""
    return [row for _, row in _lines(folder / "metrics.jsonl") if "event" not in row]


def drop_after(folder: Path, step: int) -> None:
    """Drop lines of steps after `step`: a resumed run writes them anew."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return
    kept = [line for line, row in _lines(path) if row.get("step", 0) <= step]
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

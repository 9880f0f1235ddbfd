"""Where a run's numbers go beside metrics.jsonl: TensorBoard, Ray's endpoint, and what plugins bring."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ...common.metrics import CATALOGUE
from ...common.plugins import find_plugin, plugin_names

if TYPE_CHECKING:
    from ray.util.metrics import Gauge


class MetricsSink(Protocol):
    """Takes the numbers of one run, in the driver's process."""

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Values behind `step` optimiser steps; names are those of the metrics catalogue."""
        ...

    def event(self, kind: str, facts: Mapping[str, Any]) -> None:
        """Something that happened: a dropped sample, a warning, a lost actor."""
        ...

    def close(self) -> None:
        """The run is over; called once."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkContext:
    """What a sink is told when it is made."""

    output_dir: Path
    run: str
    """The run's name: that of its folder."""
    config: Mapping[str, Any]
    """Every setting as resolved."""
    resumed_at: int | None
    """Optimiser steps behind the checkpoint that the run goes on from; what was recorded for later steps is
    recorded anew. None for a run that starts."""


SinkFactory = Callable[[SinkContext], MetricsSink]


class TensorBoardSink:
    """Curves in output_dir/tensorboard."""

    def __init__(self, context: SinkContext):
        # Imported here, so that who only reads metrics does not wait for torch.
        from torch.utils.tensorboard.writer import SummaryWriter

        after = context.resumed_at
        self._writer = SummaryWriter(
            str(context.output_dir / "tensorboard"), purge_step=None if after is None else after + 1
        )

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """One point for each curve."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def event(self, kind: str, facts: Mapping[str, Any]) -> None:
        """Curves have no events."""

    def close(self) -> None:
        """Write out what is left."""
        self._writer.close()


class RaySink:
    """Gauges at Ray's metrics endpoint, called ray_minillm_* there."""

    def __init__(self, context: SinkContext):
        self._run = context.run
        self._gauges: dict[str, Gauge] = {}

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """The latest value of each."""
        for name, value in values.items():
            self._gauge(name).set(value)

    def event(self, kind: str, facts: Mapping[str, Any]) -> None:
        """Gauges have no events."""

    def close(self) -> None:
        """Nothing is held open."""

    def _gauge(self, name: str) -> Gauge:
        from ray.util.metrics import Gauge

        if name not in self._gauges:
            gauge = Gauge("minillm_" + name.replace("/", "_"), CATALOGUE[name], tag_keys=("run",))
            gauge.set_default_tags({"run": self._run})
            self._gauges[name] = gauge
        return self._gauges[name]


SINKS: dict[str, SinkFactory] = {"tensorboard": TensorBoardSink, "ray": RaySink}
"""Those that the package brings, by their names in `metrics_sinks`."""


def make_sinks(names: Sequence[str], context: SinkContext, plugins: Sequence[str] = ()) -> list[MetricsSink]:
    """The sinks of a run. Raises ConfigError for a name that nobody offers."""
    return [
        (SINKS[name] if name in SINKS else find_plugin("metrics_sinks", name, plugins))(context)
        for name in names
    ]


def known_sinks(plugins: Sequence[str] = ()) -> list[str]:
    """Every name that `metrics_sinks` may hold."""
    return [*SINKS, *plugin_names("metrics_sinks", plugins)]

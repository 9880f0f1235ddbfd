"""What comes from outside the package: divergences and metrics sinks, found by name.

An installed package offers an object by an entry point of the group `minillm_ray.<kind>`, whose name is the
name in the settings:

    [project.entry-points."minillm_ray.divergences"]
    hellinger = "my_package.losses:hellinger"

Without a package to install, a run file names modules (`plugins: [my_losses]`), each with a mapping called
like the kind: `divergences = {"hellinger": hellinger}`. Every process of the run imports them for itself, so
they must be importable on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Literal

from .errors import ConfigError, Fault

Kind = Literal["divergences", "metrics_sinks", "data_readers"]
GROUP = "minillm_ray"


def plugin_names(kind: Kind, modules: Sequence[str] = ()) -> list[str]:
    """Names that are on offer, of entry points without importing what stands behind them."""
    offered = {entry.name for entry in entry_points(group=f"{GROUP}.{kind}")}
    return sorted(offered.union(*(_of_module(kind, module) for module in modules)))


def find_plugin(kind: Kind, name: str, modules: Sequence[str] = ()) -> Any:
    """The object called `name`; a module of the run file comes before an entry point.

    Raises ConfigError where there is none, or it cannot be imported.
    """
    for module in modules:
        offered = _of_module(kind, module)
        if name in offered:
            return offered[name]
    for entry in entry_points(group=f"{GROUP}.{kind}"):
        if entry.name == name:
            try:
                return entry.load()
            except (ImportError, AttributeError) as fault:
                raise ConfigError(
                    Fault(
                        kind,
                        name,
                        f"is offered by {entry.value}, which cannot be imported: {fault}",
                        "install what it needs",
                    )
                ) from fault
    known = ", ".join(plugin_names(kind, modules)) or "none"
    raise ConfigError(
        Fault(
            kind,
            name,
            f"is unknown; plugins offer {known}",
            "install the package that has it, or name its module in plugins",
        )
    )


def _of_module(kind: Kind, name: str) -> Mapping[str, Any]:
    try:
        module = import_module(name)
    except ImportError as fault:
        raise ConfigError(
            Fault(
                "plugins",
                name,
                f"cannot be imported: {fault}",
                "install it where the run works, or put its folder on PYTHONPATH there",
            )
        ) from fault
    offered = getattr(module, kind, {})
    if not isinstance(offered, Mapping):
        raise ConfigError(
            Fault(
                "plugins",
                name,
                f"has {kind} of type {type(offered).__name__}",
                "expected a mapping from names to objects",
            )
        )
    return offered

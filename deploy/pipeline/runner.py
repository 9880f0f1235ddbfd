"""Running a chain: everything is checked first, then each phase that is not finished runs in its turn.

What an earlier phase will make is checked when it is there; until then a model is represented by the one that
it starts from.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ...common.config.run import ModelConfig, RunConfig
from ...common.errors import ConfigError, Fault, InputError, join_scopes
from ..cli.progress import clock
from ..preflight.check import Plan
from ..runtime.cluster import cluster
from .chain import Chain, Phase
from .phases import paths_of
from .state import finished, refuse_other_settings, remember, save_chain


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What became of a phase."""

    name: str
    folder: Path
    seconds: float
    result: Any
    """None if it was finished before."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checked:
    """A phase that was checked before the chain began."""

    plan: Any
    whole: bool
    """Whether everything was there that the phase needs, so that it can run by this plan."""


def check_chain(chain: Chain) -> dict[str, Plan]:
    """Check models and data of all phases that are not finished; the plans of those that are runs.

    Raises a ConfigError that lists what is wrong in any of them.
    """
    plans = {name: checked.plan for name, checked in check_phases(chain).items()}
    return {name: plan for name, plan in plans.items() if isinstance(plan, Plan)}


def check_phases(chain: Chain) -> dict[str, Checked]:
    """Check all phases that are not finished, as far as can be. Raises ConfigError as `check_chain` does."""
    done, checked, found = finished(chain), {}, list[Fault]()
    stand_ins: dict[str, ModelConfig] = {}
    unfinished: list[Path] = []
    for phase in chain.phases:
        try:
            if phase.name not in done:
                checked[phase.name] = _check(phase, stand_ins, unfinished)
                unfinished.append(phase.output_dir)
        except InputError as error:
            found += [fault.within(phase.place) for fault in error.faults]
        if phase.kind.trains and isinstance(phase.config, RunConfig):
            model = stand_ins.get(phase.config.student.path, phase.config.student)
            stand_ins |= {str(phase.output_dir / made): model for made in phase.kind.makes}
    if found:
        raise ConfigError(*join_scopes(found), source=f"chain {chain.output_dir}")
    return checked


def run_chain(chain: Chain, console: Console | None = None) -> list[Done]:
    """Run every phase that is not finished; continue one that was begun.

    Raises ConfigError before anything starts if one that was begun has other settings now.
    """
    console = console or Console()
    refuse_other_settings(chain)
    plans = {name: checked.plan for name, checked in check_phases(chain).items() if checked.whole}
    save_chain(chain)
    before = finished(chain)
    left = [phase for phase in chain.phases if phase.name not in before]
    done = [
        Done(name=phase.name, folder=phase.output_dir, seconds=before[phase.name], result=None)
        for phase in chain.phases
        if phase.name in before
    ]
    clusters = [phase.config.cluster for phase in left]
    one = len({(c.address, c.cpus, c.dashboard) for c in clusters}) == 1
    with cluster(clusters[0]) if one else nullcontext("") as dashboard:
        if dashboard:
            console.print(f"Ray dashboard: {dashboard}", highlight=False)
        for phase in left:
            # Taken out, so that the data of a finished phase is not held to the end.
            done.append(_run(chain, phase, console, plans.pop(phase.name, None)))
    return sorted(done, key=lambda each: [phase.name for phase in chain.phases].index(each.name))


def _run(chain: Chain, phase: Phase, console: Console, plan: Any) -> Done:
    console.rule(f"{phase.name}: {phase.output_dir}")
    began = time.monotonic()
    remember(chain, phase, None)
    result = phase.kind.run(phase.config, console, plan)
    seconds = time.monotonic() - began
    remember(chain, phase, seconds)
    console.print(phase.kind.report(result), highlight=False)
    return Done(name=phase.name, folder=phase.output_dir, seconds=seconds, result=result)


def report_chain(done: Sequence[Done]) -> str:
    """A line for each phase."""
    width = max(len(each.name) for each in done)
    return "\n".join(
        f"{each.name:{width}}  {clock(each.seconds)}  {each.folder}"
        + ("  (finished before)" if each.result is None else "")
        for each in done
    )


def _check(phase: Phase, stand_ins: Mapping[str, ModelConfig], unfinished: Sequence[Path]) -> Checked:
    """Check a phase as far as can be."""
    models: dict[str, ModelConfig] = {}
    later: set[str] = set()
    pending = phase.pending()
    for key, path in pending.items():
        name = key.removesuffix(".path")
        if name in ("student", "teacher") or name.startswith("models["):
            if path not in stand_ins:
                reason = "is made by an earlier phase, but is not a model"
                raise ConfigError(Fault(key, path, reason, "name best or last of a phase that trains"))
            models[name] = stand_ins[path]
        else:
            later.add(name.removeprefix("data."))
    plan = phase.kind.check(phase.config, models, later)
    # A phase that was begun may have made a model already, and will make it anew.
    starts_from = [Path(path) for path in paths_of(phase.config).values() if path]
    changes = any(path.is_relative_to(folder) for path in starts_from for folder in unfinished)
    return Checked(plan=plan, whole=not pending and not changes)

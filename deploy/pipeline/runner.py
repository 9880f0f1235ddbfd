"""Chains: one file whose phases run one after the other, each in a folder of its own below `out`.

    out: runs/whole
    base: {teacher: {path: large}, data: {train: {path: train.jsonl}}}    # settings beneath every phase
    phases:
      sft:     {do: sft, student: {path: small}}
      minillm: {do: train, student: {path: "${output_dir}/sft/best"}}

All settings are checked before the first phase begins. What an earlier phase will make is checked when its
turn comes; until then a model is represented by the one that it starts from.
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
from ...common.errors import ConfigError, MinillmError
from ..cli.progress import clock
from ..preflight.check import Plan
from ..runtime.cluster import cluster
from .chain import Chain, Phase, _lines, _pending
from .state import _finished, _refuse_other_settings, _remember, _save


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What became of a phase."""

    name: str
    folder: Path
    seconds: float
    result: Any
    """None where it was finished before."""


def check_chain(chain: Chain) -> dict[str, Plan]:
    """Look at models and data of all phases that are not finished; plans of those that are runs.

    Raises a ConfigError that lists what is wrong in any of them.
    """
    behind, plans, found = _finished(chain), {}, {}
    stand_in: dict[str, ModelConfig] = {}
    for phase in chain.phases:
        try:
            if phase.name not in behind and (plan := _preflight(phase, stand_in)) is not None:
                plans[phase.name] = plan
        except MinillmError as fault:
            for line in fault.faults if isinstance(fault, ConfigError) else str(fault).split("\n  "):
                found.setdefault(line, []).append(phase.name)
        config = phase.kind.config(phase.asked)
        if phase.kind.trains and isinstance(config, RunConfig):
            model = stand_in.get(config.student.path, config.student)
            stand_in |= {str(phase.out / made): model for made in phase.kind.makes}
    if found:
        raise ConfigError(*_lines(found), source=f"chain {chain.out}")
    return plans


def run_chain(chain: Chain, console: Console | None = None) -> list[Done]:
    """Run every phase that is not finished; go on with one that was begun.

    Raises ConfigError before anything starts if one that was begun has other settings now.
    """
    console = console or Console()
    _refuse_other_settings(chain)
    check_chain(chain)
    _save(chain)
    behind = _finished(chain)
    left = [phase for phase in chain.phases if phase.name not in behind]
    done = [
        Done(name=phase.name, folder=phase.out, seconds=behind[phase.name], result=None)
        for phase in chain.phases
        if phase.name in behind
    ]
    clusters = [phase.kind.config(phase.asked).cluster for phase in left]
    one = len({(c.address, c.cpus, c.dashboard) for c in clusters}) == 1
    with cluster(clusters[0]) if one else nullcontext("") as dashboard:
        if dashboard:
            console.print(f"Ray dashboard: {dashboard}", highlight=False)
        for phase in left:
            done.append(_run(chain, phase, console))
    return sorted(done, key=lambda each: [phase.name for phase in chain.phases].index(each.name))


def _run(chain: Chain, phase: Phase, console: Console) -> Done:
    console.rule(f"{phase.name}: {phase.out}")
    began = time.monotonic()
    _remember(chain, phase, None)
    result = phase.kind.run(phase.asked, console)
    seconds = time.monotonic() - began
    _remember(chain, phase, seconds)
    console.print(phase.kind.told(result), highlight=False)
    return Done(name=phase.name, folder=phase.out, seconds=seconds, result=result)


def told(done: Sequence[Done]) -> str:
    """A line for each phase."""
    width = max(len(each.name) for each in done)
    return "\n".join(
        f"{each.name:{width}}  {clock(each.seconds)}  {each.folder}"
        + ("  (finished before)" if each.result is None else "")
        for each in done
    )


def _preflight(phase: Phase, stand_in: Mapping[str, ModelConfig]) -> Plan | None:
    """Check the phase as far as can be; models that are not there yet are played by where they come from."""
    if phase.kind.preflight is None:
        return None
    models: dict[str, ModelConfig] = {}
    later: set[str] = set()
    for key, path in _pending(phase).items():
        name = key.removesuffix(".path")
        if name in ("student", "teacher") or name.startswith("models["):
            models[name] = stand_in[path]
        else:
            later.add(name.removeprefix("data."))
    return phase.kind.preflight(phase.asked, models, later)

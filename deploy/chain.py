"""Chains: one file whose phases run one after the other, each in a folder of its own below `out`.

    out: runs/whole
    base: {teacher: {path: large}, data: {train: {path: train.jsonl}}}    # settings beneath every phase
    phases:
      sft:     {do: sft, student: {path: small}}
      minillm: {do: train, student: {path: "${out}/sft/best"}}

All settings are checked before the first phase begins. What an earlier phase will make is checked when its
turn comes; until then a model is represented by the one that it starts from.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console, RenderableType

from ..common.config import ModelConfig, RunConfig
from ..common.errors import ConfigError, MinillmError
from .api import resume
from .check import Plan
from .cluster import cluster
from .generate import begun, generate
from .phases import KINDS, Kind, Paths, paths_of, settle_paths
from .progress import clock
from .report import report, report_answers
from .run_file import CONFIG_FILE, Values, read_settings

PHASES = "phases.json"
"""What has been begun, with which settings, and what is finished."""
NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
FREE = ("cluster", "out")
"""Settings that a phase may have otherwise when it is gone on with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One phase, read."""

    name: str
    kind: Kind
    asked: Any
    out: Path
    options: Values

    def settings(self) -> Values:
        """All settings that matter, as plain values."""
        return self.options | self.kind.config(self.asked).model_dump(mode="json", exclude=set(FREE))


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Phases in their order."""

    out: Path
    phases: tuple[Phase, ...]
    tree: Values
    """As read, paths made absolute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What became of a phase."""

    name: str
    folder: Path
    seconds: float
    result: Any
    """None where it was finished before."""


def is_chain(file: Path | str) -> bool:
    """Whether the file has phases; what cannot be read is no chain, and is complained of as a run file."""
    try:
        tree = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(tree, dict) and "phases" in tree


def load_chain(file: Path | str, overrides: Sequence[str] = ()) -> Chain:
    """Read a chain; overrides say `phases.sft.learner.steps=100`, `base.seed=3` or `out=...`.

    Raises ConfigError with every fault of every phase.
    """
    file, faults = Path(file), []
    source = f"chain {file}"
    given = read_settings(file, overrides, source, faults).get("out")
    if not isinstance(given, str):
        raise ConfigError(*faults, "out is missing; set out=..., the folder of all phases", source=source)
    out = Path(given).expanduser().resolve()
    # Read again, so that ${out} is a path that holds wherever one stands.
    tree = read_settings(file, [*overrides, f"out={json.dumps(str(out))}"], source, [])
    faults += _tree_faults(tree)
    if faults:
        raise ConfigError(*faults, source=source)
    folders = [file.parent, Path()]
    base = settle_paths(tree.get("base") or {}, folders)
    settled = {name: settle_paths(own, folders) for name, own in tree["phases"].items()}
    found: dict[str, list[str]] = {}
    phases = [_phase(name, own, base, out, found) for name, own in settled.items()]
    whole = [phase for phase in phases if phase is not None]
    for phase in whole:
        for fault in _promise_faults(phase, _made_before(phase.name, settled, out)):
            found.setdefault(fault, []).append(phase.name)
    if found:
        raise ConfigError(*_lines(found), source=source)
    kept = {"out": str(out), "base": base, "phases": settled}
    return Chain(out=out, phases=tuple(whole), tree=kept)


def check_chain(chain: Chain) -> dict[str, Plan]:
    """Look at models and data of all phases that are not finished; plans of those that are runs.

    Raises a ConfigError that lists what is wrong in any of them.
    """
    behind, plans, found = _finished(chain), {}, {}
    stand_in: dict[str, ModelConfig] = {}
    for phase in chain.phases:
        try:
            if phase.name not in behind and (plan := _look(phase, stand_in)) is not None:
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


def go_on(folder: Path, console: Console) -> RenderableType:
    """Go on with whatever `folder` holds: a chain, answers, or a run; what came of it, for a person."""
    file = folder / CONFIG_FILE
    if is_chain(file):
        return told(run_chain(load_chain(file, [f"out={json.dumps(str(folder))}"]), console))
    if asked := begun(folder):
        return report_answers(generate(asked, console))
    return report(resume(folder, console))


def told(done: Sequence[Done]) -> str:
    """A line for each phase."""
    width = max(len(each.name) for each in done)
    return "\n".join(
        f"{each.name:{width}}  {clock(each.seconds)}  {each.folder}"
        + ("  (finished before)" if each.result is None else "")
        for each in done
    )


def _tree_faults(tree: Values) -> list[str]:
    """What keeps the phases from being read one by one."""
    found = [
        f"{key} is no part of a chain; write settings below base, or below a phase"
        for key in tree
        if key not in ("out", "base", "phases")
    ]
    if not isinstance(tree.get("base") or {}, dict):
        found.append(f"base = {tree['base']} is no section of settings")
    phases = tree.get("phases")
    if not isinstance(phases, dict) or not phases:
        return [*found, "phases is empty; give at least one, such as `sft: {do: sft}`"]
    known = ", ".join(KINDS)
    for name, own in phases.items():
        if not NAME.fullmatch(str(name)):
            found.append(f"phases.{name}: a phase is called like the folder it makes; use letters and digits")
        if not isinstance(own, dict) or "do" not in own:
            found.append(f"phases.{name}.do is missing; it is one of {known}")
        elif own["do"] not in KINDS:
            found.append(f"phases.{name}.do = {own['do']} is unknown; it is one of {known}")
        elif "out" in own:
            found.append(f"phases.{name}.out cannot be set: each phase writes into the chain's out/{name}")
    return found


def _phase(name: str, own: Values, base: Values, out: Path, found: dict[str, list[str]]) -> Phase | None:
    kind, folder = KINDS[own["do"]], out / name
    faults: list[str] = []
    options = {key: own.get(key, values[0]) for key, values in (kind.options or {}).items()}
    for key, values in (kind.options or {}).items():
        if options[key] not in values:
            allowed = ", ".join(map(str, values))
            faults.append(f"{key} = {options[key]} cannot be; it must be one of {allowed}")
            options[key] = values[0]
    settings = {key: value for key, value in own.items() if key not in ("do", *options)}
    asked = kind.read(base, settings | {"out": str(folder)}, options, faults)
    for fault in faults:
        found.setdefault(fault, []).append(name)
    if faults or asked is None:
        return None
    return Phase(name=name, kind=kind, asked=asked, out=folder, options=options)


def _lines(found: Mapping[str, Sequence[str]]) -> list[str]:
    """Each fault once, behind the phases that have it."""
    return [
        f"phase{'s' if len(names) > 1 else ''} {', '.join(names)}: {fault}" for fault, names in found.items()
    ]


def _made_before(name: str, phases: Mapping[str, Values], out: Path) -> list[str]:
    """What the phases before the one called `name` make, whether or not they can be read."""
    earlier = list(phases)[: list(phases).index(name)]
    return [str(out / other / made) for other in earlier for made in KINDS[phases[other]["do"]].makes]


def _pending(phase: Phase) -> Paths:
    """What the phase starts from below the chain's folder and is not there yet."""
    named = paths_of(phase.kind.config(phase.asked))
    return {
        key: path
        for key, path in named.items()
        if Path(path).is_relative_to(phase.out.parent) and not Path(path).exists()
    }


def _promise_faults(phase: Phase, made: Sequence[str]) -> list[str]:
    """Whether an earlier phase makes what this one waits for."""
    way_out = f"phases before it make {', '.join(made)}" if made else "no phase comes before it"
    missing = [(key, path) for key, path in _pending(phase).items() if path not in made]
    return [f"{key} = {path} is made by no earlier phase; {way_out}" for key, path in missing]


def _look(phase: Phase, stand_in: Mapping[str, ModelConfig]) -> Plan | None:
    """Check the phase as far as can be; models that are not there yet are played by where they come from."""
    if phase.kind.look is None:
        return None
    models: dict[str, ModelConfig] = {}
    later: set[str] = set()
    for key, path in _pending(phase).items():
        name = key.removesuffix(".path")
        if name in ("student", "teacher") or name.startswith("models["):
            models[name] = stand_in[path]
        else:
            later.add(name.removeprefix("data."))
    return phase.kind.look(phase.asked, models, later)


def _save(chain: Chain) -> None:
    """Keep the chain, so that `minillm resume` finds it; ${out} again where it stood."""
    chain.out.mkdir(parents=True, exist_ok=True)
    rest = _mapped(
        {key: value for key, value in chain.tree.items() if key != "out"},
        lambda text: (
            "${out}" + text[len(str(chain.out)) :]
            if Path(text).is_relative_to(chain.out)
            else text.replace("${", "\\${")
        ),
    )
    text = yaml.safe_dump({"out": str(chain.out), **rest}, sort_keys=False, allow_unicode=True, width=100)
    (chain.out / CONFIG_FILE).write_text(text, encoding="utf-8")


def _mapped(tree: Any, change: Callable[[str], str]) -> Any:
    if isinstance(tree, dict):
        return {key: _mapped(value, change) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_mapped(value, change) for value in tree]
    return change(tree) if isinstance(tree, str) else tree


def _remembered(chain: Chain) -> dict[str, Any]:
    """What was begun and is still there: a folder that was deleted is begun anew."""
    file = chain.out / PHASES
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return {name: kept for name, kept in known.items() if (chain.out / name).exists()}


def _remember(chain: Chain, phase: Phase, seconds: float | None) -> None:
    """Keep that the phase was begun (None), or that it took so long."""
    known = _remembered(chain) | {phase.name: {"settings": phase.settings(), "seconds": seconds}}
    unfinished = chain.out / f"{PHASES}.partial"
    unfinished.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(chain.out / PHASES)


def _finished(chain: Chain) -> dict[str, float]:
    """Seconds of each phase that is finished."""
    known = _remembered(chain)
    return {name: kept["seconds"] for name, kept in known.items() if kept["seconds"] is not None}


def _refuse_other_settings(chain: Chain) -> None:
    if (chain.out / CONFIG_FILE).exists() and not is_chain(chain.out / CONFIG_FILE):
        raise ConfigError(f"out = {chain.out} holds something else already; choose another one for the chain")
    known, faults = _remembered(chain), []
    for phase in chain.phases:
        if phase.name in known:
            before, now = _leaves(known[phase.name]["settings"]), _leaves(phase.settings())
            free = phase.kind.free
            changed = [k for k in before | now if before.get(k) != now.get(k) and k not in free]
            faults += [
                f"phase {phase.name}: {key} = {now.get(key)}, and it was begun with {before.get(key)}; set it"
                f" back, delete {phase.out} (and what was made from it), or choose another out"
                for key in changed
            ]
    if faults:
        raise ConfigError(*faults, source=f"chain {chain.out}")


def _leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _leaves(value, f"{prefix}.{key}" if prefix else key)
    return found

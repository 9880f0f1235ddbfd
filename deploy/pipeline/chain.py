"""A chain file: phases that run one after the other, read and checked before the first one begins.

PLACEHOLDER"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ...common.errors import ConfigError
from ..config.loader import Values, read_settings
from .phases import KINDS, Kind, Paths, paths_of, resolve_paths

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


def is_chain(file: Path | str) -> bool:
    """Whether the file has phases; what cannot be read is no chain, and is complained of as a run file."""
    try:
        tree = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(tree, dict) and "phases" in tree


def load_chain(file: Path | str, overrides: Sequence[str] = ()) -> Chain:
    """Read a chain; overrides say `phases.sft.learner.max_steps=100`, `base.seed=3` or `out=...`.

    Raises ConfigError with every fault of every phase.
    """
    file, faults = Path(file), []
    source = f"chain {file}"
    given = read_settings(file, overrides, source, faults).get("out")
    if not isinstance(given, str):
        raise ConfigError(*faults, "out is missing; set out=..., the folder of all phases", source=source)
    out = Path(given).expanduser().resolve()
    # Read again, so that ${output_dir} is a path that holds wherever one stands.
    tree = read_settings(file, [*overrides, f"output_dir={json.dumps(str(out))}"], source, [])
    faults += _tree_faults(tree)
    if faults:
        raise ConfigError(*faults, source=source)
    folders = [file.parent, Path()]
    base = resolve_paths(tree.get("base") or {}, folders)
    resolve_path = {name: resolve_paths(own, folders) for name, own in tree["phases"].items()}
    found: dict[str, list[str]] = {}
    phases = [_phase(name, own, base, out, found) for name, own in resolve_path.items()]
    whole = [phase for phase in phases if phase is not None]
    for phase in whole:
        for fault in _promise_faults(phase, _made_before(phase.name, resolve_path, out)):
            found.setdefault(fault, []).append(phase.name)
    if found:
        raise ConfigError(*_lines(found), source=source)
    kept = {"out": str(out), "base": base, "phases": resolve_path}
    return Chain(out=out, phases=tuple(whole), tree=kept)


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

"""A chain file: phases that run one after the other, read and checked before the first one begins.

    output_dir: runs/whole
    base: {teacher: {path: large}, data: {train: {path: train.jsonl}}}    # settings beneath every phase
    phases:
      sft:     {do: sft, student: {path: small}}
      minillm: {do: train, student: {path: "${output_dir}/sft/best"}}

Each phase writes into a folder of its own below `output_dir`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from ...common.errors import ABSENT, ConfigError, Fault, join_scopes
from ..config.loader import Values, read_settings
from ..config.suggestions import suggest
from .phases import KINDS, Kind, Paths, PhaseConfig, paths_of, resolve_paths

NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
PARTS = ("output_dir", "base", "phases")
"""What a chain file holds."""
FREE = ("cluster", "output_dir")
"""Settings that may differ when a stopped phase continues."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One phase, read."""

    name: str
    kind: Kind
    config: PhaseConfig
    output_dir: Path
    options: Values

    @property
    def place(self) -> str:
        """Its settings in the chain file."""
        return f"phases.{self.name}"

    def settings(self) -> Values:
        """All settings that matter, as plain values."""
        return self.options | self.config.model_dump(mode="json", exclude=set(FREE))

    def pending(self) -> Paths:
        """What it starts from below the chain's folder and is not there yet."""
        return {
            key: path
            for key, path in paths_of(self.config).items()
            if Path(path).is_relative_to(self.output_dir.parent) and not Path(path).exists()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Phases in their order."""

    output_dir: Path
    phases: tuple[Phase, ...]
    tree: Values
    """As read, paths made absolute."""


def is_chain(file: Path | str) -> bool:
    """Whether the file has phases; one that cannot be read is reported where it is read as a run file."""
    try:
        tree = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(tree, dict) and "phases" in tree


def load_chain(file: Path | str, overrides: Sequence[str] = ()) -> Chain:
    """Read a chain; overrides say `phases.sft.learner.max_steps=100`, `base.seed=3` or `output_dir=...`.

    Raises ConfigError with every fault of every phase.
    """
    file, faults = Path(file), list[Fault]()
    source = f"chain {file}"
    tree = read_settings(file, overrides, source, faults)
    given = tree.get("output_dir")
    if not isinstance(given, str):
        missing = Fault("output_dir", ABSENT, "is missing", "set output_dir=..., the folder of all phases")
        raise ConfigError(*faults, missing, *_tree_faults(tree), source=source)
    output_dir = Path(given).expanduser().resolve()
    # Read again, so that ${output_dir} is a path that holds in every folder.
    tree = read_settings(file, [*overrides, f"output_dir={json.dumps(str(output_dir))}"], source, [])
    faults += _tree_faults(tree)
    if faults:
        raise ConfigError(*faults, source=source)
    folders = [file.parent, Path()]
    base = resolve_paths(tree.get("base") or {}, folders)
    settings = {name: resolve_paths(own, folders) for name, own in tree["phases"].items()}
    phases = _read_phases(settings, base, output_dir, source)
    kept = {"output_dir": str(output_dir), "base": base, "phases": settings}
    return Chain(output_dir=output_dir, phases=tuple(phases), tree=kept)


def _tree_faults(tree: Values) -> list[Fault]:
    """What keeps the phases from being read one by one."""
    found = []
    for key in (key for key in tree if key not in PARTS):
        way_out = suggest([str(key)], PARTS) or "write settings below base, or below a phase"
        found.append(Fault(str(key), ABSENT, "is not part of a chain", way_out))
    if not isinstance(tree.get("base") or {}, dict):
        found.append(Fault("base", tree["base"], "is not a section of settings", "write settings below it"))
    phases = tree.get("phases")
    if not isinstance(phases, dict) or not phases:
        return [*found, Fault("phases", ABSENT, "is empty", "give at least one, such as `sft: {do: sft}`")]
    return [*found, *(fault for name, own in phases.items() for fault in _phase_faults(str(name), own))]


def _phase_faults(name: str, own: object) -> list[Fault]:
    """What keeps one phase from being read."""
    found, place, known = [], f"phases.{name}", f"expected one of {', '.join(KINDS)}"
    if not NAME.fullmatch(name):
        reason = "has the name of a phase, which is that of its folder too"
        found.append(Fault(place, ABSENT, reason, "use letters, digits, ., _ and -"))
    if not isinstance(own, dict) or "do" not in own:
        found.append(Fault(f"{place}.do", ABSENT, "is missing", known))
    elif own["do"] not in KINDS:
        found.append(Fault(f"{place}.do", own["do"], "", known))
    elif "output_dir" in own:
        reason = "cannot be set: each phase writes into a folder of its own"
        way_out = f"remove it; the phase writes into the chain's output_dir/{name}"
        found.append(Fault(f"{place}.output_dir", own["output_dir"], reason, way_out))
    return found


def _read_phases(settings: Mapping[str, Values], base: Values, output_dir: Path, source: str) -> list[Phase]:
    """Every phase. Raises ConfigError with the faults of all of them, each told once."""
    found: list[Fault] = []
    phases = [_phase(name, own, base, output_dir / name, found) for name, own in settings.items()]
    for phase in (phase for phase in phases if phase is not None):
        made = _made_before(phase.name, settings, output_dir)
        found += [fault.within(phase.place) for fault in _promise_faults(phase, made)]
    if found:
        raise ConfigError(*join_scopes(found), source=source)
    return [phase for phase in phases if phase is not None]


def _phase(name: str, own: Values, base: Values, folder: Path, found: list[Fault]) -> Phase | None:
    kind, faults = KINDS[own["do"]], list[Fault]()
    options = {key: own.get(key, values[0]) for key, values in (kind.options or {}).items()}
    for key, values in (kind.options or {}).items():
        if options[key] not in values:
            allowed = ", ".join(map(str, values))
            faults.append(Fault(key, options[key], "", f"expected one of {allowed}"))
            options[key] = values[0]
    settings = {key: value for key, value in own.items() if key not in ("do", *options)}
    config = kind.read(base, settings | {"output_dir": str(folder)}, options, faults)
    found += [fault.within(f"phases.{name}") for fault in faults]
    if faults or config is None:
        return None
    return Phase(name=name, kind=kind, config=config, output_dir=folder, options=options)


def _made_before(name: str, phases: Mapping[str, Values], output_dir: Path) -> list[str]:
    """What the phases before the one called `name` make, whether or not they can be read."""
    earlier = list(phases)[: list(phases).index(name)]
    return [str(output_dir / other / made) for other in earlier for made in KINDS[phases[other]["do"]].makes]


def _promise_faults(phase: Phase, made: Sequence[str]) -> list[Fault]:
    """Whether an earlier phase makes what this one waits for."""
    way_out = f"phases before it make {', '.join(made)}" if made else "no phase comes before it"
    missing = [(key, path) for key, path in phase.pending().items() if path not in made]
    return [Fault(key, path, "is made by no earlier phase", way_out) for key, path in missing]

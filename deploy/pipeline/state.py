"""What a chain remembers between two calls: the phases begun, their settings, and which are finished."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from ...common.errors import ConfigError, Fault
from ...common.process import write_atomically
from ..config.loader import CONFIG_FILE, escape
from .chain import Chain, Phase, is_chain

PHASES = "phases.json"
"""What has been begun, with which settings, and what is finished."""


def save_chain(chain: Chain) -> None:
    """Keep the chain, so that `minillm resume` finds it; its folder is written as ${output_dir} again."""
    chain.output_dir.mkdir(parents=True, exist_ok=True)
    rest = _mapped(
        {key: value for key, value in chain.tree.items() if key != "output_dir"},
        lambda text: (
            "${output_dir}" + text[len(str(chain.output_dir)) :]
            if Path(text).is_relative_to(chain.output_dir)
            else escape(text)
        ),
    )
    tree = {"output_dir": str(chain.output_dir), **rest}
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=100)
    (chain.output_dir / CONFIG_FILE).write_text(text, encoding="utf-8")


def _mapped(tree: Any, change: Callable[[str], str]) -> Any:
    if isinstance(tree, dict):
        return {key: _mapped(value, change) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_mapped(value, change) for value in tree]
    return change(tree) if isinstance(tree, str) else tree


def _remembered(chain: Chain) -> dict[str, Any]:
    """What was begun and is still there: a phase whose folder was deleted starts again."""
    file = chain.output_dir / PHASES
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return {name: kept for name, kept in known.items() if (chain.output_dir / name).exists()}


def remember(chain: Chain, phase: Phase, seconds: float | None) -> None:
    """Keep that the phase was begun (None), or that it is finished and took so long."""
    known = _remembered(chain) | {phase.name: {"settings": phase.settings(), "seconds": seconds}}
    with write_atomically(chain.output_dir / PHASES) as file:
        file.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def finished(chain: Chain) -> dict[str, float]:
    """Seconds of each phase that is finished."""
    known = _remembered(chain)
    return {name: kept["seconds"] for name, kept in known.items() if kept["seconds"] is not None}


def refuse_other_settings(chain: Chain) -> None:
    """Raises ConfigError if a phase was begun with other settings, or the folder holds something else."""
    source, folder = f"chain {chain.output_dir}", chain.output_dir
    if (folder / CONFIG_FILE).exists() and not is_chain(folder / CONFIG_FILE):
        way_out = "choose another one for the chain"
        raise ConfigError(Fault("output_dir", folder, "holds something else already", way_out), source=source)
    known, faults = _remembered(chain), []
    for phase in (phase for phase in chain.phases if phase.name in known):
        before, now = _leaves(known[phase.name]["settings"]), _leaves(phase.settings())
        for key in before | now:
            if before.get(key) != now.get(key) and key not in phase.kind.free:
                faults.append(
                    Fault(
                        key,
                        now.get(key),
                        f", and the phase was begun with {before.get(key)}",
                        f"set it back, delete {phase.output_dir} (and what was made from it), or choose"
                        " another output_dir",
                        scope=(phase.place,),
                    )
                )
    if faults:
        raise ConfigError(*faults, source=source)


def _leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _leaves(value, f"{prefix}.{key}" if prefix else key)
    return found

"""What a chain remembers between two calls: which phases were begun, with which settings, and which are finished."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from ...common.errors import ConfigError
from ...common.process import write_atomically
from ..config.loader import CONFIG_FILE
from .chain import Chain, Phase, is_chain

PHASES = "phases.json"
"""What has been begun, with which settings, and what is finished."""


def _save(chain: Chain) -> None:
    """Keep the chain, so that `minillm resume` finds it; ${output_dir} again where it stood."""
    chain.out.mkdir(parents=True, exist_ok=True)
    rest = _mapped(
        {key: value for key, value in chain.tree.items() if key != "out"},
        lambda text: (
            "${output_dir}" + text[len(str(chain.out)) :]
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
    with write_atomically(chain.out / PHASES) as file:
        file.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


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

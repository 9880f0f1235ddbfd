"""The kinds of phases that a chain can have: how each is read, looked at, run, and what it makes.

A new kind is one entry of KINDS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from ...common.config.eval import EvalConfig, EvalModel
from ...common.config.run import EngineConfig, ModelConfig, RunConfig
from ...common.errors import ConfigError
from ..cli.report import report, report_answers
from ..config.loader import (
    PATHS,
    Values,
    checked,
    merge_defaults,
    resolve_listed_paths,
    resolve_path,
    validated,
)
from ..config.presets import as_generation, as_sft
from ..evaluation import runner
from ..preflight.check import Plan, check_run
from ..training.launch import continue_run, start_run
from ..training.run_dir import RunFolder
from . import generate
from .generate import ANSWERS, Generated, Generation

Paths = dict[str, str]
"""Setting -> the file or folder that it names."""
SAMPLING = ("temperature", "top_p", "top_k")
"""How engines draw to learn from; an evaluation draws in its own way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What a chain does with phases of one kind. `asked` is what `read` gave."""

    read: Callable[[Values, Values, Values, list[str]], Any]
    """Settings beneath, the phase's own, its options, and a list for faults -> what is asked for, or None."""
    run: Callable[[Any, Console], Any]
    """Begin, or go on with what a stopped call left."""
    told: Callable[[Any], RenderableType]
    """What came of it, for a person."""
    config: Callable[[Any], RunConfig | EvalConfig]
    options: Mapping[str, tuple[Any, ...]] | None = None
    """What may stand in the phase beside settings: name -> values, the first by default."""
    makes: tuple[str, ...] = ()
    """What later phases can start from, below the phase's folder."""
    trains: bool = False
    """Whether what it makes is a model like config.student."""
    free: tuple[str, ...] = ()
    """Settings, beside where it runs and writes, that it may have otherwise when it is gone on with."""
    preflight: Callable[[Any, Mapping[str, ModelConfig], set[str]], Plan | None] | None = None
    """Check models and data; `models` stand for settings, `later` names data that are not there yet. None =
    they are looked at when the phase's turn comes."""


def over(low: Values, high: Values) -> Values:
    """The settings of a phase over those beneath; a model or data set that it names begins anew.

    Another file has other columns and splits than the one beneath.
    """
    kept = merge_defaults(low, {})
    for key in PATHS:
        *above, name, _ = key.split(".")
        named, under = high, kept
        for part in above:
            named, under = _section(named, part), _section(under, part)
        if "path" in _section(named, name) and name != "text" and name in under:
            kept = _without(kept, [*above, name])
    return merge_defaults(kept, high)


def resolve_paths(values: Values, folders: Sequence[Path]) -> Values:
    """The settings with each path made absolute from the first of `folders` in which it exists."""
    for key, path in named_paths(values).items():
        whole: Any = resolve_path(path, folders)
        for part in reversed(key.split(".")):
            whole = {part: whole}
        values = merge_defaults(values, whole)
    if isinstance(values.get("models"), list):
        values = dict(values)
        resolve_listed_paths(values, folders)
    return values


def named_paths(values: Values) -> Paths:
    """The settings of a run that name a file or folder, and what they name."""
    found = {}
    for key in PATHS:
        *above, name = key.split(".")
        section: Values = values
        for part in above:
            section = _section(section, part)
        if isinstance(section.get(name), str):
            found[key] = section[name]
    return found


def paths_of(config: RunConfig | EvalConfig) -> Paths:
    """What a phase starts from."""
    tree = config.model_dump(mode="json")
    if isinstance(config, RunConfig):
        return named_paths(tree)
    listed = {
        f"{key}[{n}].path": entry["path"] for key in ("models", "data") for n, entry in enumerate(tree[key])
    }
    return listed | named_paths({"teacher": tree["teacher"]})


def _section(values: Any, key: str) -> Values:
    found = values.get(key)
    return found if isinstance(found, dict) else {}


def _without(values: Values, keys: list[str]) -> Values:
    first, *rest = keys
    if not rest:
        return {key: value for key, value in values.items() if key != first}
    return values | {first: _without(values[first], rest)}


def _read_run(low: Values, own: Values, options: Values, faults: list[str]) -> RunConfig | None:
    return validated(over(low, own), faults)


def _read_sft(low: Values, own: Values, options: Values, faults: list[str]) -> RunConfig | None:
    return validated(as_sft(options["model"])(over(low, own), faults), faults)


def _read_generation(low: Values, own: Values, options: Values, faults: list[str]) -> Generation | None:
    config = validated(as_generation(options["by"])(over(low, own), faults), faults)
    return config and Generation(config=config, by=options["by"], keep_cut=options["keep_cut"])


def _read_eval(low: Values, own: Values, options: Values, faults: list[str]) -> EvalConfig | None:
    """Of the settings beneath: the teacher, how prompts are made, how engines run, and where."""
    data, rollout = _section(low, "data"), _section(low, "rollout")
    engine = {
        key: rollout[key] for key in EngineConfig.model_fields if key in rollout and key not in SAMPLING
    }
    taken = {key: low[key] for key in ("teacher", "scoring", "cluster") if key in low}
    taken |= {key: data[key] for key in ("template", "system_prompt", "max_prompt_tokens") if key in data}
    settings = merge_defaults(taken | {"engine": engine}, own)
    out = Path(str(own["out"])).parent
    for entry in settings.get("models") or []:  # in tables: sft/best, not where the chain lies
        if isinstance(entry, dict) and Path(str(entry.get("name"))).is_relative_to(out):
            entry["name"] = str(Path(entry["name"]).relative_to(out))
    try:
        return checked(settings, faults, "this evaluation")
    except ConfigError as found:
        faults[:] = found.faults
        return None


def _preflight_run(config: RunConfig, models: Mapping[str, ModelConfig], later: set[str]) -> Plan:
    return check_run(config.model_copy(update=dict(models)), later)


def _preflight_generation(asked: Generation, models: Mapping[str, ModelConfig], later: set[str]) -> None:
    if not later:
        generate.preflight(replace(asked, config=asked.config.model_copy(update=dict(models))))


def _preflight_eval(config: EvalConfig, models: Mapping[str, ModelConfig], later: set[str]) -> None:
    """Models that are not there yet are played by those they start from."""

    def played(key: str, model: EvalModel) -> EvalModel:
        by = models.get(key)
        return model if by is None else model.model_copy(update=by.model_dump())

    data = tuple(d for n, d in enumerate(config.data) if f"data[{n}]" not in later)
    if data:
        stand_in = {
            "models": tuple(played(f"models[{n}]", m) for n, m in enumerate(config.models)),
            "teacher": config.teacher and played("teacher", config.teacher),
            "data": data,
        }
        runner.preflight(config.model_copy(update=stand_in))


def _run(config: RunConfig, console: Console) -> Any:
    existing = RunFolder(config.output_dir).config.exists()
    return continue_run(config, console) if existing else start_run(config, console)


def _answers_told(made: Generated) -> str:
    return report_answers(made)


STUDENTS = ("best", "last")
KINDS: dict[str, Kind] = {
    "train": Kind(
        read=_read_run, run=_run, told=report, config=lambda asked: asked, preflight=_preflight_run,
        makes=STUDENTS, trains=True,
    ),
    "sft": Kind(
        read=_read_sft, run=_run, told=report, config=lambda asked: asked, preflight=_preflight_run,
        makes=STUDENTS, trains=True, options={"model": ("student", "teacher")},
    ),
    "generate": Kind(
        read=_read_generation, run=generate.generate, told=_answers_told, config=lambda asked: asked.config,
        preflight=_preflight_generation, makes=(ANSWERS,),
        options={"by": ("teacher", "student"), "keep_cut": (False, True)},
        free=("rollout.num_engines", "rollout.chunk"),
    ),
    "eval": Kind(
        read=_read_eval, run=runner.evaluate, told=runner.report_evaluation, config=lambda asked: asked,
        preflight=_preflight_eval,
        makes=("results.json",), free=("engine.num_engines", "engine.chunk", "teacher_server.num_actors"),
    ),
}  # fmt: skip
"""`do` of a phase -> what that means."""

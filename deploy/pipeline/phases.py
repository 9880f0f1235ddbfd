"""The kinds of phases that a chain can have: how each is read, checked and run, and what it makes.

A new kind is one entry of KINDS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from ...actors.answer_files import ANSWERS
from ...common.config.data import PromptSection
from ...common.config.eval import EvalConfig, EvalModel
from ...common.config.generate import GenerateConfig
from ...common.config.run import EngineConfig, ModelConfig, RunConfig
from ...common.errors import Fault
from ..cli.report import report, report_answers
from ..config.loader import (
    PATHS,
    Values,
    checked_eval,
    merge_defaults,
    resolve_listed_paths,
    resolve_path,
    validated,
)
from ..config.presets import as_sft, generation_of
from ..evaluation.check import check_eval
from ..evaluation.runner import evaluate, report_evaluation
from ..preflight.check import Plan, check_run
from ..training.launch import continue_run, start_run
from ..training.run_dir import RunDir
from .generate import check_generation, generate

Paths = dict[str, str]
"""Setting -> the file or folder that it names."""
PhaseConfig = RunConfig | GenerateConfig | EvalConfig
SAMPLING = ("temperature", "top_p", "top_k")
"""How engines draw to learn from; an evaluation draws in its own way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What a chain does with phases of one kind. `config` is what `read` gave."""

    read: Callable[[Values, Values, Values, list[Fault]], PhaseConfig | None]
    """Settings beneath, the phase's own, its options, and a list for faults -> the settings, or None."""
    check: Callable[[Any, Mapping[str, ModelConfig], set[str]], Any]
    """Check models and data, and give a plan; `models` stand in for those that are not there yet, and `later`
    names data that is not."""
    run: Callable[[Any, Console, Any], Any]
    """Begin, or continue what a stopped call left; by a plan, if `check` has made it of all that it needs."""
    report: Callable[[Any], RenderableType]
    """What came of it, for a person."""
    options: Mapping[str, tuple[Any, ...]] | None = None
    """What a phase may have in addition to settings: name -> values, the first by default."""
    makes: tuple[str, ...] = ()
    """What later phases can start from, below the phase's folder."""
    trains: bool = False
    """Whether what it makes is a model like config.student."""
    free: tuple[str, ...] = ()
    """Settings, beside where it runs and writes, that may differ when a stopped phase continues."""


def over(low: Values, high: Values) -> Values:
    """The settings of a phase over those beneath; of a model or data set that it names, nothing is kept.

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


def paths_of(config: PhaseConfig) -> Paths:
    """What a phase starts from."""
    if isinstance(config, GenerateConfig):
        return {f"{config.by}.path": config.model.path, "data.train.path": config.data.train.path}
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


def _read_run(low: Values, own: Values, options: Values, faults: list[Fault]) -> RunConfig | None:
    return validated(over(low, own), faults)


def _read_sft(low: Values, own: Values, options: Values, faults: list[Fault]) -> RunConfig | None:
    return validated(as_sft(options["model"])(over(low, own), faults), faults)


def _read_generation(low: Values, own: Values, options: Values, faults: list[Fault]) -> GenerateConfig | None:
    return generation_of(over(low, own), options["by"], options["keep_cut"], faults)


def _read_eval(low: Values, own: Values, options: Values, faults: list[Fault]) -> EvalConfig | None:
    """Of the settings beneath: the teacher, how prompts are made, how engines run, and where."""
    data, rollout = _section(low, "data"), _section(low, "rollout")
    engine = {
        key: rollout[key] for key in EngineConfig.model_fields if key in rollout and key not in SAMPLING
    }
    taken = {key: low[key] for key in ("teacher", "teacher_server", "cluster", "plugins") if key in low}
    taken |= {key: data[key] for key in PromptSection.model_fields if key in data}
    settings = merge_defaults(taken | {"engine": engine}, own)
    folder = Path(str(own["output_dir"])).parent
    for entry in settings.get("models") or []:  # in tables: sft/best, not where the chain lies
        if isinstance(entry, dict) and Path(str(entry.get("name"))).is_relative_to(folder):
            entry["name"] = str(Path(entry["name"]).relative_to(folder))
    return checked_eval(settings, faults)


def _check_run(config: RunConfig, models: Mapping[str, ModelConfig], later: set[str]) -> Plan:
    return check_run(config.model_copy(update=dict(models)), later)


def _check_generation(config: GenerateConfig, models: Mapping[str, ModelConfig], later: set[str]) -> Any:
    if later:
        return None
    return check_generation(config.model_copy(update={"model": models.get(config.by, config.model)}))


def _check_eval(config: EvalConfig, models: Mapping[str, ModelConfig], later: set[str]) -> Any:
    """Check an evaluation; models that are not there yet are represented by those they start from."""

    def stand_in(key: str, model: EvalModel) -> EvalModel:
        other = models.get(key)
        return model if other is None else model.model_copy(update=other.model_dump())

    data = tuple(d for n, d in enumerate(config.data) if f"data[{n}]" not in later)
    if not data:
        return None
    changes = {
        "models": tuple(stand_in(f"models[{n}]", m) for n, m in enumerate(config.models)),
        "teacher": config.teacher and stand_in("teacher", config.teacher),
        "data": data,
    }
    return check_eval(config.model_copy(update=changes))


def _run(config: RunConfig, console: Console, plan: Plan | None) -> Any:
    existing = RunDir(config.output_dir).config.exists()
    start = continue_run if existing else start_run
    return start(config, console, plan=plan)


STUDENTS = ("best", "last")
KINDS: dict[str, Kind] = {
    "train": Kind(
        read=_read_run, check=_check_run, run=_run, report=report, makes=STUDENTS, trains=True,
    ),
    "sft": Kind(
        read=_read_sft, check=_check_run, run=_run, report=report, makes=STUDENTS, trains=True,
        options={"model": ("student", "teacher")},
    ),
    "generate": Kind(
        read=_read_generation, check=_check_generation, run=generate, report=report_answers, makes=(ANSWERS,),
        options={"by": ("teacher", "student"), "keep_cut": (False, True)},
        free=("rollout.num_engines", "rollout.chunk"),
    ),
    "eval": Kind(
        read=_read_eval, check=_check_eval, run=evaluate, report=report_evaluation, makes=("results.json",),
        free=("engine.num_engines", "engine.chunk", "teacher_server.num_actors"),
    ),
}  # fmt: skip
"""`do` of a phase -> what that means."""

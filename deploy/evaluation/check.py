"""Everything about an evaluation that can be checked without machines; models and data are read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...common.config.eval import NEED_ANSWERS, NEED_REFERENCES, EvalConfig, EvalModel
from ...common.errors import ConfigError, DataError, Fault, InputError, collect_error, merge_errors
from ..data.record import start_time
from ..data.tokenize import Limit
from ..models.inspect import ModelFacts, inspect_model, shared_vocabulary
from ..preflight import rules
from .store import mark_of
from .tasks import EvalRows, Task, read_eval_rows, task_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SOURCE = "this evaluation"
Inspected = tuple["ModelFacts | None", "PreTrainedTokenizerBase | None"]
NOTHING: Inspected = (None, None)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """A model that can be evaluated, with the data in its tokens."""

    model: EvalModel
    name: str
    facts: ModelFacts
    tokenizer: PreTrainedTokenizerBase
    vocabulary: int
    compares: bool
    """Whether metrics that need the teacher are taken."""
    tasks: tuple[Task, ...]
    marks: tuple[str, ...]
    """What each task's results depend on beside the settings; see `mark_of`."""


def check_eval(config: EvalConfig) -> list[Candidate]:
    """The models, ready to be evaluated. Raises one error with all faults, as `check_run` does for runs."""
    found: list[InputError] = []
    if faults := config.faults():
        found.append(ConfigError(*faults, source=SOURCE))
    compares = [config.compares(model) for model in config.models]
    inspect = _Inspector(found, quantised=not config.samples_answers)  # else engines hold them too
    teacher = inspect(config.teacher, "teacher") if config.teacher is not None and any(compares) else NOTHING
    sources = [
        collect_error(found, read_eval_rows, data, name, config.plugins)
        for data, name in zip(config.data, config.data_names(), strict=True)
    ]
    read = [source for source in sources if source is not None]
    candidates = []
    for model, name, compared in zip(config.models, config.model_names(), compares, strict=True):
        inspected = inspect(model, f"models[{name}]")
        with_teacher = teacher if compared else NOTHING
        candidates.append(_candidate(config, model, name, compared, inspected, with_teacher, read, found))
    if found:
        raise merge_errors(found, SOURCE)
    return [candidate for candidate in candidates if candidate is not None]


class _Inspector:
    """Inspects each model once, though it may be both teacher and among the models."""

    def __init__(self, found: list[InputError], *, quantised: bool):
        self._found, self._quantised = found, quantised
        self._known: dict[tuple[str, str | None], Inspected] = {}

    def __call__(self, model: EvalModel, key: str) -> Inspected:
        which = model.path, model.revision
        if which not in self._known:
            self._known[which] = inspect_model(model, key, self._found, quantised=self._quantised)
        return self._known[which]


def _candidate(
    config: EvalConfig,
    model: EvalModel,
    name: str,
    compares: bool,
    inspected: Inspected,
    with_teacher: Inspected,
    sources: Sequence[EvalRows],
    found: list[InputError],
) -> Candidate | None:
    """One model with its tasks; what is wrong goes into `found`."""
    key = f"models[{name}]"
    (facts, tokenizer), (teacher, teacher_tokenizer) = inspected, with_teacher
    if facts is None or tokenizer is None:
        return None
    vocabulary = collect_error(
        found, shared_vocabulary, facts, teacher, tokenizer, teacher_tokenizer, (key, "teacher")
    )
    if faults := _model_faults(config, key, facts, teacher):
        found.append(ConfigError(*faults, source=SOURCE))
    started = start_time(config.output_dir)
    context = min((m.context for m in (facts, teacher) if m and m.context is not None), default=None)
    tasks = [collect_error(found, task_of, source, config, tokenizer, context, started) for source in sources]
    read = [task for task in tasks if task is not None]
    if len(read) == len(config.data):
        found += [DataError(fault) for fault in _impossible_metrics(config, read)]
    if vocabulary is None:
        return None
    return Candidate(
        model=model,
        name=name,
        facts=facts,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        compares=compares,
        tasks=tuple(read),
        marks=tuple(
            mark_of(config, model, data, task) for data, task in zip(config.data, read, strict=False)
        ),
    )


def _model_faults(config: EvalConfig, key: str, facts: ModelFacts, teacher: ModelFacts | None) -> list[Fault]:
    max_prompt = Limit("max_prompt_tokens", config.max_prompt_tokens)
    max_answer = Limit("engine.max_new_tokens", config.engine.max_new_tokens)
    found = rules.room_faults(key, facts, max_prompt, max_answer)
    if config.samples_answers:
        held = [facts, teacher] if teacher is not None else [facts]
        found += rules.engine_faults(key, facts, config.cluster)
        found += rules.cache_faults("engine", config.engine, held, config.max_tokens)
    return found


def _impossible_metrics(config: EvalConfig, tasks: Sequence[Task]) -> list[Fault]:
    """A metric that was asked for by name must be possible on one data set at least."""
    names = ", ".join(task.name for task in tasks)
    answered = [task for task in tasks if not task.is_classification]
    found = []
    for metric in config.metrics or ():
        if metric in NEED_ANSWERS and not answered:
            reason = f"is taken from answers, and all data ({names}) have label words to choose from"
            found.append(Fault("metrics", metric, reason, "set their choices to null, or leave it out"))
        elif metric in NEED_REFERENCES and not any(task.references for task in answered):
            reason = f"needs right answers, and no record of {names} has one"
            way_out = f"name their column (data[...].output), or leave {metric} out"
            found.append(Fault("metrics", metric, reason, way_out))
        elif metric == "accuracy" and not any(task.rule for task in answered):
            reason = f"needs to know how an answer's verdict is found in {names}"
            way_out = "set the data set's extract to last_number, option_letter or exact"
            found.append(Fault("metrics", metric, reason, way_out))
        elif metric == "calibration" and len(answered) == len(tasks):
            reason = f"needs label words, and none of {names} has a column of choices"
            way_out = "add one (a list of labels in each row), or leave calibration out"
            found.append(Fault("metrics", metric, reason, way_out))
    return found

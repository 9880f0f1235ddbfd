"""What an unknown setting, or a value, was probably meant to be, where other software has a name for it.

Nothing is renamed by itself: what is unknown stays refused, and the words found here show the way out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .other_names import SUGGESTIONS, Suggestion

IN_EVALUATION: tuple[tuple[str, str], ...] = (
    (r"student\..*", "models"),
    (r"data\.(train|validation)\..*", "data"),
    (
        r"data\.(template|chat_template|chat_template_kwargs|system_prompt|allow_control_tokens|max_prompt_tokens)",
        r"\1",
    ),
    (r"(rollout|validation)\.num_generations", "num_seeds"),
    (r"rollout\.(.*)", r"engine.\1"),
    (r"validation\.metric", "metrics"),
)
"""Setting of a run (a pattern) -> what says the same in an evaluation; the first that matches."""


@dataclass(frozen=True, slots=True)
class ValueSuggestion:
    """One value as it is typed, and what it is called here."""

    setting: str
    """Last part of the setting's name."""
    typed: str
    value: str
    note: str = ""
    """What else has to be set."""


VALUES: tuple[ValueSuggestion, ...] = (
    ValueSuggestion("kind", "lm", "sft"),
    ValueSuggestion("kind", "opd", "minillm", "with objective.preset=opd"),
    ValueSuggestion("kind", "gkd", "kd", "with objective.divergence=jsd and objective.sampled_share"),
    ValueSuggestion("dtype", "bf16", "bfloat16"),
    ValueSuggestion("dtype", "fp16", "float16"),
    ValueSuggestion("dtype", "half", "float16"),
    ValueSuggestion("dtype", "fp32", "float32"),
    ValueSuggestion("dtype", "float", "float32"),
    ValueSuggestion("schedule", "constant_trm", "constant", "with learner.optimizer.warmup_steps"),
    ValueSuggestion("schedule", "constant_with_warmup", "constant", "with learner.optimizer.warmup_steps"),
    ValueSuggestion("schedule", "cosine_trm", "cosine", "with learner.optimizer.min_lr"),
    ValueSuggestion("schedule", "cosine_with_min_lr", "cosine", "with learner.optimizer.min_lr"),
    ValueSuggestion("name", "adamw_torch", "adamw"),
    ValueSuggestion("name", "adamw_torch_fused", "adamw"),
    ValueSuggestion("metric", "rougel", "rouge_l"),
    ValueSuggestion("metric", "eval_loss", "loss"),
)
"""The values of other software, and of an earlier draft of ours. `dtype` is hidden_dtype's too."""


def suggest(keys: Sequence[str | int], known: Iterable[str]) -> str | None:
    """What the unknown setting at `keys` was meant to be, in words; None if nobody uses that name.

    `known` are the dotted settings of the tree that was asked for, a run's or an evaluation's: what it does
    not have is not suggested. Hyphens and upper case in what was typed do not matter.
    """
    tree = frozenset(known)
    parts = [_plain(part) for part in keys if isinstance(part, str) for part in part.split(".")]
    if not parts:
        return None
    entries = _entries(parts)
    if not entries:
        same = sorted(key for key in tree if key.split(".")[-1] == parts[-1])
        return _words(_beside(same, parts), ()) if same else None
    named = [_here(setting, tree) for entry in entries for setting in entry.settings]
    settings = _beside(list(dict.fromkeys(name for name in named if name)), parts)
    notes = tuple(dict.fromkeys(entry.note for entry in entries if entry.note))
    if settings:
        return _words(settings, tuple(_translated(note, tree) for note in notes))
    in_a_run = any(name.startswith("learner.") for name in tree)
    return f"nothing here corresponds to it: {'; '.join(notes)}" if in_a_run and not named else None


def suggest_value(keys: Sequence[str | int], value: object, allowed: Iterable[object]) -> str | None:
    """What a refused value of the setting at `keys` is called here, in words; None if nobody uses it.

    `allowed` are the values that this setting takes: nothing else is suggested.
    """
    if not keys or not isinstance(value, str):
        return None
    setting, typed, possible = _plain(str(keys[-1])), _plain(value), set(allowed)
    for entry in VALUES:
        meant = setting in (entry.setting, f"hidden_{entry.setting}")
        if meant and entry.typed == typed and entry.value in possible:
            return _words([entry.value], (entry.note,) if entry.note else ())
    return None


def _plain(name: str) -> str:
    return name.strip().lstrip("-").replace("-", "_").lower()


def _entries(parts: Sequence[str]) -> list[Suggestion]:
    """Those of the whole dotted name; else of its last part; else those of ours that ended in it."""
    for name in (".".join(parts), parts[-1]):
        if found := [entry for entry in SUGGESTIONS if entry.name == name]:
            return found
    return [entry for entry in SUGGESTIONS if entry.name.split(".")[-1] == parts[-1]]


def _here(setting: str, tree: frozenset[str]) -> str | None:
    """What the setting of a run is called in `tree`; None if it has no such setting."""
    for name in (setting, _in_evaluation(setting)):
        if name in tree or any(key.startswith(f"{name}.") for key in tree):
            return name
    return None


def _in_evaluation(setting: str) -> str:
    for pattern, name in IN_EVALUATION:
        if found := re.fullmatch(pattern, setting):
            return found.expand(name)
    return setting


def _translated(note: str, tree: frozenset[str]) -> str:
    """The note, with the settings that it names called as in `tree`."""
    return re.sub(r"[a-z_]+(\.[a-z_]+)+", lambda found: _here(found[0], tree) or found[0], note)


def _beside(settings: list[str], parts: Sequence[str]) -> list[str]:
    """Those in the section that was typed, if there are any there; else all."""
    section = ".".join([*parts[:-1], ""])
    return [name for name in settings if name.startswith(section)] or settings


def _words(settings: Sequence[str], notes: Sequence[str]) -> str:
    told = f" ({'; '.join(notes)})" if notes else ""
    return f"did you mean {' or '.join(settings)}?{told}"

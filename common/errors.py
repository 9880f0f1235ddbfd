"""What can go wrong, as a tree, and the fault: one thing that is wrong, as data.

    MinillmError
      InputError         something that a person gave cannot be used  (also a ValueError)
        ConfigError      the run file asks for something impossible
        DataError        a prompt, text or record is not usable
        ModelError       a model cannot be used as it was asked
      ClusterError       Ray or its machines cannot hold this run     (also a RuntimeError)
      NonFiniteLoss      a loss or gradient is not finite             (also an ArithmeticError)
      WorkerDied         an actor or rank died                        (also a RuntimeError)
      Disagreement       processes compute different log-probs        (also an ArithmeticError)
      IncompatibleLibrary  a library lacks what is used of it       (also a RuntimeError)

An InputError carries faults; they become words in `str()`, where they are shown. All errors survive pickling,
since they cross processes.
"""

from __future__ import annotations

import textwrap
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final, ParamSpec, TypeVar


class _Absent(Enum):
    ABSENT = "absent"


ABSENT: Final = _Absent.ABSENT
"""The value of a fault that is not about a value: a setting that is missing, or unknown."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with what a person gave: where, what, why, and the way out."""

    key: str
    """The setting, dotted as it is written; "" = no setting is to blame."""
    value: Any
    reason: str
    """What is wrong, as the rest of a sentence that begins with the setting and its value; "" = the value
    itself is invalid."""
    fix: str
    """The way out, as a phrase."""
    also: tuple[str, ...] = ()
    """Other settings that take part in it."""
    scope: tuple[str, ...] = ()
    """Where the key holds, if in parts of a file only, such as phases.sft of a chain."""

    @property
    def keys(self) -> tuple[str, ...]:
        """All settings that take part."""
        return self.key, *self.also

    def concerns(self, key: str) -> bool:
        """Whether the setting at `key`, something below it, or a section that holds it takes part."""
        parts = key.split(".")
        return any(_begins_alike(parts, own.split(".")) for own in self.keys if own)

    def within(self, place: str) -> Fault:
        """The same fault, of one more part of a file."""
        return replace(self, scope=(*self.scope, place))

    def __str__(self) -> str:
        if not self.reason:
            told = f"invalid value {shown(self.value)} for {self.key}"
        else:
            subject = self.key if self.value is ABSENT else f"{self.key} = {shown(self.value)}"
            gap = "" if not subject or self.reason[0] in ",:;" else " "
            told = f"{subject}{gap}{self.reason}"
        place = f"{', '.join(self.scope)}: " if self.scope else ""
        return f"{place}{told}; {self.fix}" if self.fix else f"{place}{told}"


def _begins_alike(one: Sequence[str], other: Sequence[str]) -> bool:
    return all(a == b for a, b in zip(one, other, strict=False))


def shown(value: Any) -> str:
    """A value as a person would write it in a run file, if it is short."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping | list | tuple):
        text = str(value)
        return text if len(text) <= 80 else f"{text[:77]}..."
    return str(value)


def join_scopes(faults: Iterable[Fault]) -> list[Fault]:
    """Each fault once; one that several parts of a file have names them all."""
    found: list[Fault] = []
    for fault in faults:
        plain = replace(fault, scope=())
        for index, known in enumerate(found):
            if replace(known, scope=()) == plain:
                found[index] = replace(known, scope=tuple(dict.fromkeys((*known.scope, *fault.scope))))
                break
        else:
            found.append(fault)
    return found


class MinillmError(Exception):
    """The root of all errors that a person is meant to read."""


class InputError(MinillmError, ValueError):
    """Something that a person gave cannot be used; all faults are listed at once."""

    def __init__(self, *faults: Fault | str, source: str = ""):
        """A plain sentence is a fault in which no setting takes part."""
        self.faults: tuple[Fault, ...] = tuple(
            Fault("", ABSENT, fault, "") if isinstance(fault, str) else fault for fault in faults
        )
        self.source = source
        super().__init__(*self.faults)

    def __reduce__(self):
        return _rebuild, (type(self), self.faults, self.source)

    def __str__(self) -> str:
        return "\n  ".join(map(str, self.faults))


def _rebuild(kind: type[InputError], faults: tuple[Fault, ...], source: str) -> InputError:
    return kind(*faults, source=source)


class ConfigError(InputError):
    """One or more settings cannot be used."""

    def __init__(self, *faults: Fault | str, source: str = "this run"):
        super().__init__(*faults, source=source)

    def __str__(self) -> str:
        return "\n  ".join([f"{self.source} cannot be used:", *map(str, self.faults)])


class DataError(InputError):
    """A data set or one of its records is not what it should be."""


class ModelError(InputError):
    """A model cannot be used: it is missing, of the wrong kind, or has another tokenizer."""


class ClusterError(MinillmError, RuntimeError):
    """Ray cannot be reached, or its machines cannot hold what the run needs."""


class NonFiniteLoss(MinillmError, ArithmeticError):
    """A loss or gradient is not a finite number; the message names the batch."""


class WorkerDied(MinillmError, RuntimeError):
    """An actor or a learner rank is gone; the message names it."""


class Disagreement(MinillmError, ArithmeticError):
    """Processes that hold one model compute different log-probs; the message says which, and by how much."""


class IncompatibleLibrary(MinillmError, RuntimeError):
    """An installed library lacks internals that are used of it; the message names them and a way out."""


P = ParamSpec("P")
T = TypeVar("T")


def collect_error(
    found: list[InputError], action: Callable[P, T], *given: P.args, **named: P.kwargs
) -> T | None:
    """What `action` gives; None if it fails, and then `found` has its error too."""
    try:
        return action(*given, **named)
    except InputError as error:
        found.append(error)
        return None


def merge_errors(found: Sequence[InputError], source: str = "this run") -> InputError:
    """One error with all faults: of their own kind if they are of one, else a ConfigError."""
    faults = join_scopes(fault for error in found for fault in error.faults)
    kinds = {type(error) for error in found}
    if kinds == {DataError} or kinds == {ModelError}:
        return kinds.pop()(*faults)
    return ConfigError(*faults, source=source)


def told(error: BaseException) -> str:
    """Another library's error in a line: its kind, and what it says, or else what it stumbled over."""
    lines = str(error).strip().splitlines()
    if lines:
        return f"{type(error).__name__}: {textwrap.shorten(lines[0], 300, placeholder=' ...')}"
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__}: {frames[-1].line}" if frames else type(error).__name__

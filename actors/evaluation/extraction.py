"""Accuracy where a task has one right answer: what an answer settles on, found by a rule with a name.

- `last_number`: the last number in the text (arithmetic; a reference such as "... #### 42" is read alike)
- `option_letter`: the letter of a multiple-choice option, A to J: said outright ("the answer is B"), else in
  brackets ("(B)"), else at the start of a line ("B", "B. Paris")
- `exact`: the whole text, after lower-casing and without punctuation
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Decimal

from .text_scores import normalise

_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")
_LETTERS = (
    re.compile(r"\b(?i:answer|option|choice)(?i:\s+is)?\s*:?\s*[\[(*]*([A-J])\b"),
    re.compile(r"[\[(]([A-J])[\])]"),
    re.compile(r"^\W*([A-J])(?:[.:)]|\s*$)", re.MULTILINE),
)


def last_number(text: str) -> str | None:
    """The last number, in plain decimal writing; None if there is none."""
    found = _NUMBER.findall(text)
    if not found:
        return None
    value = Decimal(found[-1].replace(",", ""))
    return f"{value.normalize():f}" if value else "0"


def option_letter(text: str) -> str | None:
    """The letter that the text settles on; None if it names none."""
    for pattern in _LETTERS:
        if found := pattern.findall(text):
            return found[-1]
    return None


RULES: dict[str, Callable[[str], str | None]] = {
    "last_number": last_number,
    "option_letter": option_letter,
    "exact": normalise,
}


def is_right(answer: str, references: Sequence[str], rule: str) -> bool:
    """Whether the answer settles on what one of the references settles on. An answer without one is wrong."""
    found = RULES[rule](answer)
    return found is not None and found in {RULES[rule](reference) for reference in references}

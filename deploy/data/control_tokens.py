"""Control tokens that are written out in a text, such as <|im_end|> in a question about chat formats.

A tokenizer cannot tell them from the marks that a template writes. So they are put aside before a text goes
into its template, and come back as plain text behind it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OPEN, _CLOSE = "\U0010f8fe", "\U0010f8ff"
"""Around the number of what was put aside: private characters, which no text should hold."""
_ASIDE = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")
BATCH = 1000
"""Texts that are tokenised at once: a tokenizer keeps far more of each than its ids."""


class ControlTokens:
    """The control tokens of a tokenizer: those that it marks as special."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        special = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
        self.texts = tuple(sorted((text for text in special if text), key=len, reverse=True))
        """As they are written; the longest first."""
        self._aside = (*self.texts, _OPEN)
        self._number = {text: number for number, text in enumerate(self._aside)}
        self._any = _one_of(self._aside)
        self._marks = _one_of(self.texts)

    def put_aside(self, value: Any, only: Collection[str] | None = None) -> Any:
        """The same text, or nested value, with control tokens (or `only` some of them) put aside."""
        if isinstance(value, str):
            return self._any.sub(lambda found: self._placeholder(found[0], only), value)
        if isinstance(value, dict):
            return {self.put_aside(key, only): self.put_aside(one, only) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.put_aside(one, only) for one in value]
        return value

    def put_back(self, text: str) -> str:
        """The text as it was written."""
        return _ASIDE.sub(lambda found: self._aside[int(found[1])], text)

    def marks_in(self, text: str) -> list[str]:
        """The control tokens in a text, in their order."""
        return self._marks.findall(text)

    def encode(self, texts: Sequence[str], *, special: bool = False) -> list[npt.NDArray[np.int32]]:
        """Token ids of each text, in which what was put aside is plain text.

        `special` lets the tokenizer add its own marks, such as a first token.
        """
        found: list[npt.NDArray[np.int32]] = []
        for first in range(0, len(texts), BATCH):
            batch = texts[first : first + BATCH]
            plain = [_OPEN not in text for text in batch]
            ids = iter(
                self._ids([text for text, is_plain in zip(batch, plain, strict=True) if is_plain], special)
            )
            found += [
                next(ids) if is_plain else self._mixed(text, special)
                for text, is_plain in zip(batch, plain, strict=True)
            ]
        return found

    def _placeholder(self, text: str, only: Collection[str] | None) -> str:
        if only is not None and text not in only and text != _OPEN:
            return text
        return f"{_OPEN}{self._number[text]}{_CLOSE}"

    def _ids(self, texts: list[str], special: bool, **options: Any) -> list[npt.NDArray[np.int32]]:
        if not texts:
            return []
        ids = self._tokenizer(
            texts, add_special_tokens=special, return_attention_mask=False, verbose=False, **options
        )["input_ids"]
        return [np.asarray(one, np.int32) for one in ids]

    def _mixed(self, text: str, special: bool) -> npt.NDArray[np.int32]:
        """Ids of a text with something put aside: its marks one by one, what is between them as text."""
        marks = self.marks_in(text)
        if not marks:
            return self._ids([self.put_back(text)], special, split_special_tokens=True)[0]
        pieces: list[npt.NDArray[np.int32]] = []
        rest = text
        for mark in [*marks, None]:
            before, _, rest = rest.partition(mark) if mark is not None else (rest, "", "")
            if before:
                pieces += self._ids([self.put_back(before)], False, split_special_tokens=True)
            if mark is not None:
                pieces.append(np.asarray(self._tokenizer.convert_tokens_to_ids([mark]), np.int32))
        return np.concatenate(pieces) if pieces else np.zeros(0, np.int32)


def _one_of(texts: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, texts)) or r"(?!)")

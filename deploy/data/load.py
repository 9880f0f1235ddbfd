"""All data of a run, read and tokenised once: for the checks before it starts, then for the run itself."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeVar

from ...common.config.run import RunConfig
from ...common.errors import InputError, collect_error
from ...common.types import Dropped, Passage, Prompt
from .readers import read_rows
from .tokenize import Blocks, Kept, Limit, TokenizedData, load_blocks, tokenize_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
Name = Literal["train", "validation", "test"]
ID_PREFIX: dict[Name, str] = {"train": "train", "validation": "validation", "test": "heldout"}
"""How prompt ids begin. Each answer's random numbers depend on its prompt's id, so these stay as they are."""


@dataclass(slots=True, kw_only=True)
class RunData:
    """What a run learns from and is measured on; empty where it has none."""

    prompts: Sequence[Prompt] = ()
    """To be answered while training."""
    answers: Sequence[Passage] = ()
    """Given answers to learn from, or blocks of plain text in their place."""
    text: Sequence[Passage] = ()
    """Blocks of plain text for the language-model term."""
    validation: Sequence[Prompt] = ()
    validation_answers: Sequence[Passage] = ()
    """Given answers, or blocks of plain text, where their loss chooses the best student."""
    test: Sequence[Prompt] = ()
    records: dict[str, int] = field(default_factory=dict)
    """Usable records by data set, and blocks of text."""
    dropped: dict[str, tuple[Dropped, ...]] = field(default_factory=dict)
    """What cannot be used, by data set."""

    @property
    def all_dropped(self) -> list[Dropped]:
        """What cannot be used, of all data sets."""
        return [drop for drops in self.dropped.values() for drop in drops]


def load_run_data(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    found: list[InputError],
    later: Collection[str] = (),
) -> RunData:
    """Everything that the run reads; data that cannot be used leaves its error in `found`.

    `later` names data sets (train, text ...) that will only be there when the run starts.
    """
    return _Loader(config, tokenizer, found, later).load()


class _Loader:
    def __init__(
        self,
        config: RunConfig,
        tokenizer: PreTrainedTokenizerBase,
        found: list[InputError],
        later: Collection[str],
    ):
        self._config, self._tokenizer, self._found, self._later = config, tokenizer, found, later
        self._max_answer = Limit("rollout.max_new_tokens", config.rollout.max_new_tokens)
        self._data = RunData()

    def load(self) -> RunData:
        config, data = self._config, self._data
        if train := self._tokenized("train"):
            if config.sampled_answers:
                data.prompts = self._kept("train", collect_error(self._found, train.prompts))
            if config.given_answers:
                data.answers = self._kept(
                    "train", collect_error(self._found, train.passages, self._max_answer)
                )
        if validation := self._tokenized("validation"):
            if config.validation.metric == "loss":
                given = collect_error(self._found, validation.passages, self._max_answer)
                data.validation_answers = self._kept("validation", given)
            else:
                data.validation = self._kept("validation", collect_error(self._found, validation.prompts))
        if test := self._tokenized("test"):
            data.test = self._kept("test", collect_error(self._found, test.prompts))
        self._load_text()
        return data

    def _tokenized(self, name: Name) -> TokenizedData | None:
        source = getattr(self._config.data, name)
        if source is None or name in self._later:
            return None
        rows = collect_error(self._found, read_rows, source, f"data.{name}")
        if rows is None:
            return None
        return collect_error(
            self._found, tokenize_rows, rows, ID_PREFIX[name], self._config.prompts, self._tokenizer
        )

    def _kept(self, name: Name, kept: Kept[T] | None) -> Sequence[T]:
        """The items, counted. A record dropped from both prompts and answers is kept once in `dropped`."""
        if kept is None:
            return ()
        known = self._data.dropped.get(name, ())
        self._data.dropped[name] = (*known, *(drop for drop in kept.dropped if drop not in known))
        self._data.records[name] = len(kept)
        return kept.items

    def _load_text(self) -> None:
        text, config, data = self._config.text, self._config, self._data
        if text is None or "text" in self._later:
            return
        blocks = collect_error(self._found, load_blocks, text, self._tokenizer)
        parts = collect_error(self._found, blocks.split, text.validation_blocks) if blocks else None
        if parts is None:
            return
        rest, held = parts
        data.records |= {"text": len(rest)} | ({"text held out": len(held)} if len(held) else {})
        if config.text_alone:
            data.answers, data.validation_answers = rest, list(held)
        elif config.objective.kind != "sft":  # fine-tuning has no term for it
            data.text = rest


def is_text(items: Sequence[Passage]) -> bool:
    """Whether these are blocks of plain text."""
    return isinstance(items, Blocks)

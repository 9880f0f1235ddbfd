"""All data of a run, read and tokenised once: for the checks before it starts, then for the run itself."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from ...common.config.run import RunConfig
from ...common.errors import InputError, collect_error
from ...common.types import AnswerFormat, Dropped, Ids, Passage, Prompt
from .readers import read_rows
from .record import start_time
from .tokenize import Blocks, Kept, Limit, TokenizedData, load_blocks, tokenize_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
PROBED = 16
"""Items of each set that the probes of the parity check are cut of."""
MANY_REPEATED = 0.05
"""Share of repeated prompts from which on it is said."""
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
    answer_format: AnswerFormat = field(default_factory=AnswerFormat)
    """How the data ends answers."""
    notes: list[str] = field(default_factory=list)
    """What is worth knowing of it."""
    started: datetime = field(default_factory=datetime.now)
    """The time that chat templates were told."""

    @property
    def all_dropped(self) -> list[Dropped]:
        """What cannot be used, of all data sets."""
        return [drop for drops in self.dropped.values() for drop in drops]

    def sets(self) -> dict[str, Sequence[Prompt] | Sequence[Passage]]:
        """Everything that is learned from or measured on, by the setting that it comes from."""
        source = "text" if is_text(self.answers) else "data.train"
        found: dict[str, Sequence[Prompt] | Sequence[Passage]] = {
            "data.train": self.prompts,
            f"{source} (given answers)": self.answers,
            "text": self.text,
            "data.validation": self.validation,
            "data.validation (given answers)": self.validation_answers,
            "data.test": self.test,
        }
        return {key: items for key, items in found.items() if len(items)}


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
        self._data = RunData(started=start_time(config.output_dir))
        self._ends: list[int] = []
        self._template: str | None = None

    def load(self) -> RunData:
        config, data = self._config, self._data
        if train := self._tokenized("train"):
            if config.sampled_answers:
                data.prompts = self._kept("train", collect_error(self._found, train.prompts))
            if config.given_answers:
                data.answers = self._kept("train", self._given(train))
            self._note(train)
        if validation := self._tokenized("validation"):
            if config.validation.metric == "loss":
                data.validation_answers = self._kept("validation", self._given(validation))
            else:
                data.validation = self._kept("validation", collect_error(self._found, validation.prompts))
            self._note(validation)
        if test := self._tokenized("test"):
            data.test = self._kept("test", collect_error(self._found, test.prompts))
            self._note(test)
        self._load_text()
        data.notes += repeat_notes(data)
        data.answer_format = AnswerFormat(
            end_ids=tuple(sorted(set(self._ends))), chat_template=self._template
        )
        return data

    def _given(self, data: TokenizedData) -> Kept[Passage] | None:
        every = self._config.data.train_on == "all_assistant"
        return collect_error(self._found, data.passages, self._max_answer, all_turns=every)

    def _note(self, data: TokenizedData) -> None:
        """Keep what is known of a data set once all of it was made."""
        self._ends += data.end_ids()
        self._template = data.renderer.chat_template
        self._data.notes += data.notes

    def _tokenized(self, name: Name) -> TokenizedData | None:
        source = getattr(self._config.data, name)
        if source is None or name in self._later:
            return None
        config = self._config
        rows = collect_error(self._found, read_rows, source, f"data.{name}", config.plugins)
        if rows is None:
            return None
        prefix, started = ID_PREFIX[name], self._data.started
        return collect_error(
            self._found, tokenize_rows, rows, prefix, config.prompts, self._tokenizer, started
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
        blocks = collect_error(self._found, load_blocks, text, self._tokenizer, config.plugins)
        parts = collect_error(self._found, blocks.split, text.validation_blocks) if blocks else None
        if parts is None:
            return
        rest, held = parts
        data.records |= {"text": len(rest)} | ({"text held out": len(held)} if len(held) else {})
        if config.text_alone:
            data.answers, data.validation_answers = rest, list(held)
        elif config.objective.kind != "sft":  # fine-tuning has no term for it
            data.text = rest


def repeat_notes(data: RunData) -> list[str]:
    """Where prompts come twice: in what is measured and in what is learned, or many of them in one set."""
    notes = []
    train = _by_tokens(data.prompts or ([] if is_text(data.answers) else data.answers))
    for key, items in (
        ("data.validation", data.validation or data.validation_answers),
        ("data.test", data.test),
    ):
        if is_text(items):
            continue
        both = [(name, train[ids]) for ids, name in _by_tokens(items).items() if ids in train]
        if both:
            name, known = both[0]
            notes.append(
                f"{key}: {len(both)} of {len(items)} prompts are also training prompts ({name} is {known})"
            )
    for key, items in data.sets().items():
        repeated = 0 if is_text(items) or "text" in key else len(items) - len(_by_tokens(items))
        if repeated >= MANY_REPEATED * len(items) and repeated:
            notes.append(f"{key}: {repeated} of {len(items)} prompts are there before, token for token")
    return notes


def _by_tokens(items: Sequence[Prompt] | Sequence[Passage]) -> dict[bytes, str]:
    """Tokens of each prompt -> the first that has them."""
    found: dict[bytes, str] = {}
    for item in items:
        ids, name = (
            (item.token_ids, item.id) if isinstance(item, Prompt) else (item.prompt_ids, item.prompt_id)
        )
        found.setdefault(ids.tobytes(), name)
    return found


def texts_of(data: RunData) -> list[Ids]:
    """Tokens of the run's own data, some of every set, to cut probes of."""
    found: list[Ids] = []
    for items in data.sets().values():
        for n in range(min(PROBED, len(items))):
            item = items[n]
            found.append(
                item.token_ids if isinstance(item, Prompt) else np.append(item.prompt_ids, item.answer_ids)
            )
    return found


def is_text(items: object) -> bool:
    """Whether these are blocks of plain text."""
    return isinstance(items, Blocks)

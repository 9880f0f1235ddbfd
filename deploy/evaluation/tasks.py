"""One data set as an evaluation sees it: prompts, given answers, and label words where it has choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from ...actors.scorer import num_inputs
from ...common.config.eval import EvalConfig, EvalData
from ...common.errors import DataError
from ...common.types import Dropped, Ids, Passage, Prompt
from ..data.control_tokens import ControlTokens
from ..data.readers import Rows, read_rows
from ..data.tokenize import Limit, TokenizedData, tokenize_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choices:
    """The label words of some prompts, and which one is right."""

    labels: tuple[Ids, ...]
    """Token ids of each label, [C]."""
    prompts: tuple[Prompt, ...]
    right: tuple[int, ...]
    """Index of each prompt's right label."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """A data set in the tokens of one model."""

    name: str
    prompts: tuple[Prompt, ...]
    given: tuple[Passage, ...]
    """Prompts with their first right answer; without those that are too long or have none."""
    choices: tuple[Choices, ...]
    """One for each set of label words; empty unless this is a classification task."""
    rule: str | None
    end_ids: tuple[int, ...]
    """Tokens that end an answer, beside those of the model's generation config."""
    dropped: tuple[Dropped, ...]

    @property
    def is_classification(self) -> bool:
        """Whether models choose among label words rather than answer."""
        return bool(self.choices)

    @property
    def questions(self) -> dict[str, str]:
        """Prompt id -> question as a person wrote it."""
        return {prompt.id: prompt.text for prompt in self.prompts}

    @property
    def references(self) -> dict[str, tuple[str, ...]]:
        """Prompt id -> right answers, of those that have any."""
        return {prompt.id: prompt.references for prompt in self.prompts if prompt.references}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EvalRows:
    """A data set as read, once for all models."""

    name: str
    rows: Rows
    data: EvalData

    def label_words(self) -> list[object] | None:
        """What each row has to choose from; None unless this is a classification task."""
        columns = self.rows.table.columns
        found = columns.get(self.data.choices or "")
        return None if found is None else list(found)


def read_eval_rows(data: EvalData, name: str, plugins: Sequence[str] = ()) -> EvalRows:
    """Read a data set. Raises DataError for what cannot be used."""
    return EvalRows(name=name, rows=read_rows(data, f"data[{name}]", plugins), data=data)


def task_of(
    source: EvalRows,
    config: EvalConfig,
    tokenizer: PreTrainedTokenizerBase,
    context: int | None = None,
    started: datetime | None = None,
) -> Task:
    """A data set for one model; `context` is the most tokens that it can read.

    `started` is the time that chat templates are told.

    Prompts are tokenised once. Raises DataError for what cannot be used.
    """
    tokenized = tokenize_rows(source.rows, source.name, config.prompts, tokenizer, started)
    prompts = tokenized.prompts()
    choices = _choices(source, {prompt.id: prompt for prompt in prompts}, tokenizer)
    given: list[Passage] = []
    dropped = list(prompts.dropped)
    if config.wants("lm_loss") and not choices and any(prompt.references for prompt in prompts):
        given, more = _given(tokenized, config.max_reference_tokens, context)
        dropped += more
    return Task(
        name=source.name,
        prompts=prompts.items,
        given=tuple(given),
        choices=choices,
        rule=source.data.extract,
        end_ids=tokenized.end_ids(),
        dropped=tuple(dropped),
    )


def _given(
    tokenized: TokenizedData, max_tokens: int, context: int | None
) -> tuple[list[Passage], list[Dropped]]:
    """The given answers that the model can read, and those that are left out of lm_loss."""
    passages = tokenized.passages(Limit("max_reference_tokens", max_tokens), may_be_none=True)
    kept: list[Passage] = []
    # Prompts that are too long, and rows without an answer, are dropped with the prompts.
    too_long = [(d.prompt_id, d.detail) for d in passages.dropped if d.reason == "answer_too_long"]
    for passage in passages:
        tokens = num_inputs(passage)
        if context is not None and tokens > context:
            too_long.append((passage.prompt_id, f"{tokens} tokens with the prompt > {context} positions"))
        else:
            kept.append(passage)
    dropped = [
        Dropped(prompt_id=prompt_id, stage="lm_loss", reason="reference_too_long", detail=detail)
        for prompt_id, detail in too_long
    ]
    return kept, dropped


def _choices(
    source: EvalRows, prompts: Mapping[str, Prompt], tokenizer: PreTrainedTokenizerBase
) -> tuple[Choices, ...]:
    column = source.label_words()
    if column is None:
        return ()
    groups: dict[tuple[str, ...], list[tuple[Prompt, int]]] = {}
    for number, words in enumerate(column):
        prompt = prompts.get(f"{source.name}/{number}")
        if prompt is None:
            continue  # dropped, with its own message
        labels = _labels(words, number, source)
        if not prompt.references or prompt.references[0] not in labels:
            raise DataError(
                source.rows.fault(
                    "choices",
                    f"{source.rows.place(number)} has the answer {prompt.references[:1]}, which is"
                    f" none of its label words {labels}",
                    "mend the row",
                )
            )
        groups.setdefault(tuple(labels), []).append((prompt, labels.index(prompt.references[0])))
    return tuple(
        Choices(
            labels=tuple(ControlTokens(tokenizer).encode(words)),
            prompts=tuple(prompt for prompt, _ in members),
            right=tuple(right for _, right in members),
        )
        for words, members in groups.items()
    )


def _labels(words: object, number: int, source: EvalRows) -> list[str]:
    labels = [word for word in words if isinstance(word, str) and word] if isinstance(words, list) else []
    if not isinstance(words, list) or len(labels) < max(2, len(words)):
        raise DataError(
            source.rows.fault(
                "choices",
                f"{source.rows.place(number)} holds {words!r}",
                "give a list of at least two label words",
            )
        )
    return labels

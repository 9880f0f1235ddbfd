"""One data set as an evaluation sees it: prompts, given answers, and label words where it has choices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ...actors.scorer import num_inputs
from ...common.config.eval import EvalConfig, EvalData
from ...common.config.run import ModelConfig, RunConfig
from ...common.errors import DataError
from ...common.types import Dropped, Ids, Passage, Prompt
from ..data.readers import read_records
from ..data.tokenize import load_passages, load_prompts, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choices:
    """The label words of some prompts, and which one is right."""

    labels: tuple[Ids, ...]
    """Token ids of each label, [C]."""
    prompts: tuple[Prompt, ...]
    right: tuple[int, ...]
    """Place of each prompt's right label."""


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


def load_task(
    config: EvalConfig,
    data: EvalData,
    name: str,
    model: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    context: int | None = None,
) -> Task:
    """Read a data set for one model; `context` is the most tokens that it can read.

    Raises DataError for what cannot be used.
    """
    run = config.as_run(model, data)
    prompts = load_prompts(run, "test", tokenizer)
    dropped = [
        replace(
            drop,
            prompt_id=_renamed(drop.prompt_id, name),
            detail=drop.detail.replace("data.max_prompt_tokens", "max_prompt_tokens"),
        )
        for drop in prompts.dropped
    ]
    choices = _choices(data, name, {prompt.id: prompt for prompt in prompts}, tokenizer)
    given: list[Passage] = []
    if config.wants("lm_loss") and not choices and any(prompt.references for prompt in prompts):
        given, more = _given(config, run, name, tokenizer, context)
        dropped += more
    return Task(
        name=name,
        prompts=tuple(replace(prompt, id=_renamed(prompt.id, name)) for prompt in prompts),
        given=tuple(given),
        choices=choices,
        rule=data.extract,
        dropped=tuple(dropped),
    )


def _given(
    config: EvalConfig, run: RunConfig, name: str, tokenizer: PreTrainedTokenizerBase, context: int | None
) -> tuple[list[Passage], list[Dropped]]:
    """The given answers that the model can read, and those that are left out of lm_loss."""
    limit = config.max_reference_tokens
    longer = run.rollout.model_copy(update={"max_new_tokens": limit})
    passages = load_passages(run.model_copy(update={"rollout": longer}), "test", tokenizer, may_be_none=True)
    kept: list[Passage] = []
    told = [
        (drop.prompt_id, drop.detail.replace("rollout.max_new_tokens", "max_reference_tokens"))
        for drop in passages.dropped
        if drop.reason == "answer_too_long"  # the others were told with the prompts
    ]
    for passage in passages:
        tokens = num_inputs(passage)
        if context is not None and tokens > context:
            told.append((passage.prompt_id, f"{tokens} tokens with the prompt > {context} positions"))
        else:
            kept.append(replace(passage, prompt_id=_renamed(passage.prompt_id, name)))
    dropped = [
        Dropped(
            prompt_id=_renamed(prompt_id, name), stage="lm_loss", reason="reference_too_long", detail=detail
        )
        for prompt_id, detail in told
    ]
    return kept, dropped


def _renamed(prompt_id: str, name: str) -> str:
    return f"{name}/{prompt_id.split('/', 1)[1]}"


def _choices(
    data: EvalData, name: str, prompts: Mapping[str, Prompt], tokenizer: PreTrainedTokenizerBase
) -> tuple[Choices, ...]:
    rows = read_records(data.path, data.split, data.subset, data.limit, "data")
    if data.choices is None or data.choices not in rows.column_names:
        return ()
    groups: dict[tuple[str, ...], list[tuple[Prompt, int]]] = {}
    for number, words in enumerate(rows[data.choices]):
        prompt = prompts.get(f"heldout/{number}")
        if prompt is None:
            continue  # dropped, with a message of its own
        if not isinstance(words, list) or len(words) < 2 or not all(isinstance(w, str) and w for w in words):
            raise DataError(
                f"data.choices = {data.choices}: row {number} of {data.path} holds {words!r}; it must be a"
                " list of at least two label words"
            )
        if not prompt.references or prompt.references[0] not in words:
            raise DataError(
                f"data.choices = {data.choices}: row {number} of {data.path} has the answer"
                f" {prompt.references[:1]}, which is none of its label words {words}; mend the row"
            )
        renamed = replace(prompt, id=_renamed(prompt.id, name))
        groups.setdefault(tuple(words), []).append((renamed, words.index(prompt.references[0])))
    return tuple(
        Choices(
            labels=tuple(np.asarray(ids, np.int32) for ids in tokenize(tokenizer, words, special=False)),
            prompts=tuple(prompt for prompt, _ in members),
            right=tuple(right for _, right in members),
        )
        for words, members in groups.items()
    )

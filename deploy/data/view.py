"""What a run reads of one of its data sets, record by record, for a person or as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ...common.config.run import RunConfig
from ...common.errors import ABSENT, ConfigError, Fault, InputError, merge_errors
from ...common.types import Dropped, Passage, Prompt
from ..models.inspect import inspect_model
from .load import ID_PREFIX, Name
from .readers import read_rows
from .record import start_time
from .tokenize import Limit, TokenizedData, tokenize_rows

QUANTILES = {"least": 0, "25 %": 25, "median": 50, "75 %": 75, "95 %": 95, "most": 100}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownRecord:
    """A record as the run reads it; of a chat of which every turn is learned, one of its turns."""

    id: str
    prompt: str
    """As the model reads it, marks of the template included."""
    answer: str | None
    """The given answer with the token that ends it; None if there is none."""
    prompt_ids: list[int]
    answer_ids: list[int] | None
    references: list[str]

    def as_json(self) -> dict[str, Any]:
        """The record as `minillm data --json` writes it."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataView:
    """A data set as a run reads it."""

    split: Name
    path: str
    records: Sequence[ShownRecord]
    dropped: Sequence[Dropped]
    is_trained: bool
    """Whether the run learns the given answers; else they are references, or not read at all."""
    notes: Sequence[str]

    def lengths(self) -> Mapping[str, Mapping[str, int]]:
        """Quantiles of the tokens of prompts, and of given answers where there are any."""
        found = {"prompt": [len(record.prompt_ids) for record in self.records]}
        if answers := [len(record.answer_ids) for record in self.records if record.answer_ids is not None]:
            found["answer"] = answers
        return {
            part: {name: int(np.percentile(tokens, q, method="nearest")) for name, q in QUANTILES.items()}
            for part, tokens in found.items()
        }


def view_data(config: RunConfig, split: Name) -> DataView:
    """What `config` reads as data.`split`. Raises an InputError for what cannot be read."""
    source, key = getattr(config.data, split), f"data.{split}"
    if source is None:
        have = [name for name in ID_PREFIX if getattr(config.data, name) is not None]
        fix = f"set {key}.path, or show another: {', '.join(have) or 'there is none'}"
        raise ConfigError(Fault(key, ABSENT, "is missing", fix))
    found: list[InputError] = []
    _, tokenizer = inspect_model(config.student, "student", found)
    if found or tokenizer is None:
        raise merge_errors(found)
    data = tokenize_rows(
        read_rows(source, key, config.plugins),
        ID_PREFIX[split],
        config.prompts,
        tokenizer,
        start_time(config.output_dir),
    )
    by_loss = split == "validation" and config.validation.metric == "loss"
    is_trained = by_loss or (split == "train" and config.given_answers > 0)
    limit = Limit("rollout.max_new_tokens", config.rollout.max_new_tokens)
    every = is_trained and config.data.train_on == "all_assistant"
    passages = data.passages(limit, all_turns=every, may_be_none=True)
    samples = not is_trained or (split == "train" and config.sampled_answers > 0)
    prompts = data.prompts() if samples else None
    records = list(_records(data, passages.items, prompts.items if prompts is not None else ()))
    dropped = list(prompts.dropped if prompts is not None else ())
    if is_trained:
        dropped += [drop for drop in passages.dropped if drop not in dropped]
    return DataView(
        split=split,
        path=source.path,
        records=records,
        dropped=dropped,
        is_trained=is_trained,
        notes=tuple(data.notes) if is_trained else (),
    )


def _records(
    data: TokenizedData, passages: Sequence[Passage], prompts: Sequence[Prompt]
) -> Iterator[ShownRecord]:
    """Prompts with their given answers, and answers whose prompts are not asked, in the data set's order."""
    references = {record.id: data.renderer.reference(record) for record in data.records}
    given: dict[str, list[Passage]] = {}
    for passage in passages:
        given.setdefault(passage.prompt_id.partition("@")[0], []).append(passage)
    asked = {prompt.id: prompt for prompt in prompts}

    def text(ids: Any) -> str:
        return str(data.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    for record in data.records:
        known = list(references[record.id])
        for passage in given.get(record.id, ()):
            yield ShownRecord(
                id=passage.prompt_id,
                prompt=text(passage.prompt_ids),
                answer=text(passage.answer_ids),
                prompt_ids=passage.prompt_ids.tolist(),
                answer_ids=passage.answer_ids.tolist(),
                references=known,
            )
        if record.id in asked and record.id not in given:
            ids = asked[record.id].token_ids
            yield ShownRecord(
                id=record.id,
                prompt=text(ids),
                answer=None,
                prompt_ids=ids.tolist(),
                answer_ids=None,
                references=known,
            )

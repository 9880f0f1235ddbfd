"""From records to prompts, given answers and blocks of plain text, as token ids.

Every item is named after its data set and row, such as train/17. What is too long is dropped with a message,
never cut. A given answer is tokenised by itself and ended by the end-of-sequence token, behind the same
prompt tokens from which answers are sampled, whatever the template.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt

from ...common.config.data import PromptSettings, TextConfig
from ...common.errors import ABSENT, DataError, Fault
from ...common.types import Dropped, Ids, Passage, Prompt
from .readers import Rows, documents
from .templates import Record, records_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kept(Sequence[T], Generic[T]):
    """Items that can be used, and those of their data set that cannot."""

    items: tuple[T, ...]
    dropped: tuple[Dropped, ...]

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...
    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        return self.items[index]


@dataclass(frozen=True, slots=True)
class Limit:
    """A number of tokens that may not be exceeded, and the setting that says so."""

    key: str
    value: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenizedData:
    """A data set with its prompts in tokens: prompts to answer and given answers are both made of it."""

    rows: Rows
    records: tuple[Record, ...]
    prompt_ids: tuple[Ids, ...]
    tokenizer: PreTrainedTokenizerBase
    max_prompt: Limit

    def prompts(self) -> Kept[Prompt]:
        """The prompts that are short enough. Raises DataError if none is."""
        prompts, dropped = [], []
        for record, ids in zip(self.records, self.prompt_ids, strict=True):
            if len(ids) > self.max_prompt.value:
                dropped.append(_too_long(record.id, "prompt", len(ids), self.max_prompt))
                continue
            prompts.append(
                Prompt(id=record.id, token_ids=ids, text=record.question, references=record.answers)
            )
        return _kept(prompts, dropped, self.rows.key)

    def passages(self, max_answer: Limit, *, may_be_none: bool = False) -> Kept[Passage]:
        """Prompts with the (first) right answer of each, the end-of-sequence token behind it.

        What is too long is dropped, as are rows without an answer. Raises DataError if the tokenizer has no
        such token or, unless there `may_be_none`, nothing is left.
        """
        answers = tokenize(
            self.tokenizer, [r.answers[0] if r.answers else "" for r in self.records], special=False
        )
        end = eos_id(self.tokenizer)
        passages, dropped = [], []
        for record, ids, answer in zip(self.records, self.prompt_ids, answers, strict=True):
            if not record.answers:
                drop = Dropped(
                    prompt_id=record.id, stage="prompts", reason="no_answer", detail="the row has none"
                )
            elif len(ids) > self.max_prompt.value:
                drop = _too_long(record.id, "prompt", len(ids), self.max_prompt)
            elif len(answer) + 1 > max_answer.value:
                drop = _too_long(record.id, "answer", len(answer) + 1, max_answer)
            else:
                ended = np.append(answer, np.int32(end))
                passages.append(Passage(prompt_id=record.id, prompt_ids=ids, answer_ids=ended))
                continue
            dropped.append(drop)
        if may_be_none and not passages:
            return Kept((), tuple(dropped))
        return _kept(passages, dropped, self.rows.key)


def tokenize_rows(
    rows: Rows, id_prefix: str, settings: PromptSettings, tokenizer: PreTrainedTokenizerBase
) -> TokenizedData:
    """Put every row into its template and tokenise the prompts. Raises DataError for rows of no use."""
    records = records_of(rows, id_prefix, settings, tokenizer)
    # A chat template writes its own marks; the others leave the first token to the tokenizer.
    chat = settings.template == "chat"
    ids = tokenize(tokenizer, [record.prompt for record in records], special=not chat)
    end = tokenizer.eos_token_id
    # Some tokenizers also close what they encode: a closed prompt has no answer.
    ids = [one[:-1] if not chat and len(one) > 1 and one[-1] == end else one for one in ids]
    return TokenizedData(
        rows=rows,
        records=tuple(records),
        prompt_ids=tuple(ids),
        tokenizer=tokenizer,
        max_prompt=Limit(settings.key("max_prompt_tokens"), settings.max_prompt_tokens),
    )


@dataclass(frozen=True, slots=True)
class Blocks(Sequence[Passage]):
    """Plain text in blocks of equal length; each is a passage whose prompt is its first token."""

    ids: npt.NDArray[np.int32]  # [N, block_tokens]
    positions: npt.NDArray[np.int64]  # [N], of each block in the text

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Passage: ...
    @overload
    def __getitem__(self, index: slice) -> Blocks: ...
    def __getitem__(self, index: int | slice) -> Passage | Blocks:
        if isinstance(index, slice):
            raise TypeError("blocks are named by their position: take them one by one")
        block = self.ids[index]
        return Passage(prompt_id=f"text/{self.positions[index]}", prompt_ids=block[:1], answer_ids=block[1:])

    def split(self, count: int) -> tuple[Blocks, Blocks]:
        """(the others, `count` held out), the latter evenly spread. Raises DataError if no other is left."""
        if count >= len(self):
            raise DataError(
                Fault(
                    "text.validation_blocks",
                    count,
                    f"leaves nothing of {len(self)} blocks to learn from",
                    "lower it, or give more text",
                )
            )
        held = np.zeros(len(self), bool)
        held[np.arange(count) * len(self) // max(1, count)] = True
        return Blocks(self.ids[~held], self.positions[~held]), Blocks(self.ids[held], self.positions[held])


def load_blocks(text: TextConfig, tokenizer: PreTrainedTokenizerBase) -> Blocks:
    """The plain text: documents joined by the end-of-sequence token and cut into blocks.

    The rest that fills no block is left out. Raises DataError if there is not one whole block.
    """
    end = np.array([eos_id(tokenizer)], np.int32)
    pieces: list[npt.NDArray[np.int32]] = []
    for ids in tokenize(tokenizer, documents(text), special=False):
        pieces += [ids, end]
    stream = np.concatenate(pieces) if pieces else end[:0]
    size = text.block_tokens
    if len(stream) < size:
        raise DataError(
            Fault(
                "text.path",
                text.path,
                f": {len(stream)} tokens do not fill one block of text.block_tokens = {size}",
                "give more text or lower text.block_tokens",
                also=("text.block_tokens",),
            )
        )
    blocks = stream[: len(stream) // size * size].reshape(-1, size)
    return Blocks(blocks, np.arange(len(blocks)))


def eos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends an answer. Raises DataError if the tokenizer names none."""
    if tokenizer.eos_token_id is None:
        raise DataError(
            Fault(
                "",
                ABSENT,
                f"the tokenizer of {tokenizer.name_or_path} has no end-of-sequence token, so no answer could"
                " end",
                "set eos_token in its tokenizer_config.json",
            )
        )
    return int(str(tokenizer.eos_token_id))


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, special: bool
) -> list[npt.NDArray[np.int32]]:
    """Token ids of each text; `special` lets the tokenizer add its own marks, such as a first token."""
    if not texts:
        return []
    found = tokenizer(list(texts), add_special_tokens=special, return_attention_mask=False, verbose=False)
    return [np.asarray(ids, np.int32) for ids in found["input_ids"]]


def _too_long(id: str, part: str, length: int, limit: Limit) -> Dropped:
    return Dropped(
        prompt_id=id,
        stage="prompts",
        reason=f"{part}_too_long",
        detail=f"{length} tokens > {limit.key} = {limit.value}",
    )


def _kept(items: Iterable[T], dropped: Sequence[Dropped], key: str) -> Kept[T]:
    kept = Kept(tuple(items), tuple(dropped))
    if not len(kept):
        first = dropped[0]
        raise DataError(
            Fault(
                key,
                ABSENT,
                f": none of {len(dropped)} records can be used; {first.prompt_id} was dropped for"
                f" {first.reason} ({first.detail})",
                "raise the limit or mend the data",
            )
        )
    return kept

"""From records to prompts, given answers and blocks of plain text, as token ids.

Every item is named after its data set and row, such as train/17. What is too long is dropped with a message,
never cut. A given answer of a chat is what the chat template writes behind the prompt, up to the token that
ends it; of other templates it is tokenised by itself, the end-of-sequence token behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Generic, TypeVar, cast, overload

import numpy as np
import numpy.typing as npt

from ...actors.answer_files import Question
from ...common.config.data import PromptSettings, TextConfig
from ...common.errors import ABSENT, DataError, Fault
from ...common.types import Dropped, Ids, Passage, Prompt
from .control_tokens import BATCH, ControlTokens
from .readers import Rows, read_documents
from .rendering import Given, Renderer, end_id
from .templates import Record, as_read, records_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
LONG = 64
"""Characters for each token of a limit, from which on a text is first tokenised in part."""


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
    prompt_ids: tuple[Ids | TooLong, ...]
    renderer: Renderer
    tokenizer: PreTrainedTokenizerBase
    max_prompt: Limit
    notes: list[str] = field(default_factory=list)
    """What is worth knowing of it, such as how given answers end."""

    def prompts(self) -> Kept[Prompt]:
        """The prompts that are short enough. Raises DataError if none is."""
        prompts, dropped = [], []
        for record, ids in zip(self.records, self.prompt_ids, strict=True):
            if isinstance(ids, TooLong):
                dropped.append(_too_long(record.id, "prompt", ids, self.max_prompt))
                continue
            references = self.renderer.reference(record)
            prompts.append(Prompt(id=record.id, token_ids=ids, text=record.question, references=references))
        return _kept(prompts, dropped, self.rows.key)

    def passages(
        self, max_answer: Limit, *, all_turns: bool = False, may_be_none: bool = False
    ) -> Kept[Passage]:
        """Prompts with the (first) right answer of each, ended as the template ends it; see `Renderer.given`.

        With `all_turns` every turn of the assistant is an answer to all before it. What is too long is
        dropped, as are records without an answer. Raises DataError if the tokenizer has no
        end-of-sequence token where one is needed or, unless there `may_be_none`, nothing is left.
        """
        by_chat = self.renderer.is_chat
        found = list(
            self._passages_of_chats(max_answer, all_turns) if by_chat else self._passages(max_answer)
        )
        passages = [one for one in found if isinstance(one, Passage)]
        dropped = [one for one in found if isinstance(one, Dropped)]
        if may_be_none and not passages:
            return Kept((), tuple(dropped))
        return _kept(passages, dropped, self.rows.key)

    def questions(self, prompts: Sequence[Prompt]) -> dict[str, Question]:
        """Prompt id -> what is asked, as the data set has it, in the order of the prompts."""
        return {prompt.id: as_read(self.records[int(prompt.id.rpartition("/")[2])]) for prompt in prompts}

    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: the tokenizer's, and what the chat template closes turns with."""
        texts = [self.tokenizer.eos_token, *self.renderer.end_texts]
        named = [text for text in texts if isinstance(text, str)]
        found = cast(list[int], self.tokenizer.convert_tokens_to_ids(named))
        return tuple(dict.fromkeys(found))

    def _passages(self, max_answer: Limit) -> Iterator[Passage | Dropped]:
        control, end = self.renderer.control, end_id(self.tokenizer)
        texts = [self.renderer.answer(record) if record.answers else "" for record in self.records]
        answers = encode(control, texts, max_answer.value - 1, special=False)
        for record, ids, answer in zip(self.records, self.prompt_ids, answers, strict=True):
            if not record.answers:
                yield _no_answer(record.id)
            elif isinstance(ids, TooLong):
                yield _too_long(record.id, "prompt", ids, self.max_prompt)
            elif isinstance(answer, TooLong):
                yield _too_long(record.id, "answer", replace(answer, tokens=answer.tokens + 1), max_answer)
            else:
                ended = np.append(answer, np.int32(end))
                yield Passage(prompt_id=record.id, prompt_ids=ids, answer_ids=ended)

    def _passages_of_chats(self, max_answer: Limit, all_turns: bool) -> Iterator[Passage | Dropped]:
        unended = shorter = 0
        for first in range(0, len(self.records), BATCH):
            batch = slice(first, first + BATCH)
            given: list[tuple[Record, Given, Ids | TooLong | None]] = []
            for record, ids in zip(self.records[batch], self.prompt_ids[batch], strict=True):
                if not record.is_answered:
                    yield _no_answer(record.id)
                elif isinstance(ids, TooLong) and not all_turns:
                    yield _too_long(record.id, "prompt", ids, self.max_prompt)
                else:
                    answers = self.renderer.given(record, all_turns=all_turns)
                    given += [(record, one, None if all_turns else ids) for one in answers]
            texts = [one.text for _, one, _ in given]
            most = self.max_prompt.value + max_answer.value
            for (record, one, prompt), whole in zip(
                given, encode(self.renderer.control, texts, most, special=False), strict=True
            ):
                name = record.id if one.turn is None else f"{record.id}@{one.turn}"
                prompt = self._prompt_of_turn(record, one) if prompt is None else prompt
                if isinstance(prompt, TooLong):
                    yield _too_long(name, "prompt", prompt, self.max_prompt)
                    continue
                if isinstance(whole, TooLong):
                    behind = TooLong(tokens=whole.tokens - len(prompt), at_least=whole.at_least)
                    yield _too_long(name, "answer", behind, max_answer)
                    continue
                length = self._prompt_length(record, one, prompt, whole)
                answer = (
                    whole[length:]
                    if one.ended
                    else np.append(whole[length:], np.int32(end_id(self.tokenizer)))
                )
                unended += not one.ended
                shorter += length < len(prompt)
                if len(answer) > max_answer.value:
                    yield _too_long(name, "answer", TooLong(tokens=len(answer)), max_answer)
                else:
                    yield Passage(prompt_id=name, prompt_ids=whole[:length], answer_ids=answer)
        self._tell_of_ends(unended, shorter)

    def _prompt_of_turn(self, record: Record, given: Given) -> Ids | TooLong:
        assert given.turn is not None, "every turn of the chat is learned"
        text = self.renderer.prompt_of_turn(record, given.turn)
        return encode(self.renderer.control, [text], self.max_prompt.value, special=False)[0]

    def _prompt_length(self, record: Record, given: Given, prompt: Ids, whole: Ids) -> int:
        """How much of the rendered chat is the prompt: as much as it has in common with the sampling prompt.

        Raises DataError if the template writes earlier turns in another way once an answer follows.
        """
        length = _common_length(prompt, whole)
        if length == len(prompt):
            return length
        # What the template opens an answer with may be missing once there is one; what is before may not.
        # A token may reach over the border: then the answer begins with it.
        if given.turn is None:
            text = self.renderer.prompt(record)
        else:
            text = self.renderer.prompt_of_turn(record, given.turn)
        before = text.removesuffix(self.renderer.opening_of(text))
        if not given.text.startswith(before) or not length:
            key = f"{self.rows.key}.{'messages' if record.chat is not None else 'path'}"
            raise DataError(
                Fault(
                    key,
                    ABSENT,
                    f": the chat template writes the turns before the answer of {record.place} in another way"
                    " once the answer follows",
                    "leave the record out, or set data.chat_template to a template that keeps them",
                )
            )
        return length

    def _tell_of_ends(self, unended: int, shorter: int) -> None:
        end = self.tokenizer.eos_token
        if unended:
            self.notes.append(
                f"{self.rows.key}: the chat template closes an answer with no token of its own; the student"
                f" learns to end with {end}"
            )
        if shorter:
            self.notes.append(
                f"{self.rows.key}: {shorter} given answers begin before the end of the prompt that answers"
                " are sampled to: the template opens an answer with marks that an answer in a chat has not"
            )


def tokenize_rows(
    rows: Rows,
    id_prefix: str,
    settings: PromptSettings,
    tokenizer: PreTrainedTokenizerBase,
    started: datetime | None = None,
) -> TokenizedData:
    """Put every record into its template and tokenise the prompts. Raises DataError for records of no use.

    `started` is the time that chat templates are told; None = now.
    """
    renderer = Renderer(tokenizer, settings, started or datetime.now())
    records = records_of(rows, id_prefix)
    limit = settings.how.max_prompt_tokens
    # A chat template writes its own marks; the others leave the first token to the tokenizer.
    chat = renderer.is_chat
    end = tokenizer.eos_token_id
    ids: list[Ids | TooLong] = []
    for first in range(0, len(records), BATCH):
        texts = [renderer.prompt(record) for record in records[first : first + BATCH]]
        for one in encode(renderer.control, texts, limit + (not chat), special=not chat):
            if not isinstance(one, TooLong) and not chat:
                # Some tokenizers also close what they encode: a closed prompt has no answer.
                one = one[:-1] if len(one) > 1 and one[-1] == end else one
                one = TooLong(tokens=len(one)) if len(one) > limit else one
            ids.append(one)
    return TokenizedData(
        rows=rows,
        records=tuple(records),
        prompt_ids=tuple(ids),
        renderer=renderer,
        tokenizer=tokenizer,
        max_prompt=Limit(settings.key("max_prompt_tokens"), limit),
    )


@dataclass(frozen=True, slots=True)
class TooLong:
    """A text of too many tokens, in place of their ids."""

    tokens: int
    at_least: bool = False
    """Whether only the beginning of the text was counted."""


def encode(control: ControlTokens, texts: Sequence[str], most: int, *, special: bool) -> list[Ids | TooLong]:
    """Token ids of each text that has at most so many; of a far longer one only the beginning is read."""
    room = most * LONG + LONG
    long = [len(text) > 2 * room for text in texts]
    found: list[Ids | TooLong] = []
    cut = [text[:room] if is_long else text for text, is_long in zip(texts, long, strict=True)]
    for text, ids, is_long in zip(texts, control.encode(cut, special=special), long, strict=True):
        if is_long and len(ids) <= most:  # long words, or much white space: the whole text decides
            (ids,) = control.encode([text], special=special)
            is_long = False
        found.append(TooLong(tokens=len(ids), at_least=is_long) if len(ids) > most else ids)
    return found


def _common_length(one: Ids, other: Ids) -> int:
    """How many ids two texts begin with in common."""
    size = min(len(one), len(other))
    differ = np.flatnonzero(one[:size] != other[:size])
    return int(differ[0]) if len(differ) else size


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


def load_blocks(text: TextConfig, tokenizer: PreTrainedTokenizerBase, plugins: Sequence[str] = ()) -> Blocks:
    """The plain text: documents joined by the end-of-sequence token and cut into blocks.

    The rest that fills no block is left out. Raises DataError if there is not one whole block.
    """
    end = np.array([end_id(tokenizer)], np.int32)
    pieces: list[npt.NDArray[np.int32]] = []
    for ids in ControlTokens(tokenizer).encode(read_documents(text, plugins)):
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


def _no_answer(id: str) -> Dropped:
    return Dropped(prompt_id=id, stage="prompts", reason="no_answer", detail="the record has none")


def _too_long(id: str, part: str, found: TooLong, limit: Limit) -> Dropped:
    length = f"at least {found.tokens}" if found.at_least else str(found.tokens)
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

"""From files and hub data sets to prompts, given answers and blocks of plain text, as token ids.

Every item is named after its data set and row, such as train/17. What is too long is dropped with a message,
never cut. A given answer is tokenised by itself and ended by the end-of-sequence token, behind the same
prompt tokens from which answers are sampled, whatever the template.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

import jinja2
import numpy as np
import numpy.typing as npt

from ...common.config.data import DataConfig, PromptData
from ...common.config.run import RunConfig
from ...common.errors import DataError
from ...common.types import Dropped, Passage, Prompt
from ..models.inspect import load_tokenizer
from .readers import column_of, documents, read_records
from .templates import alpaca, plain

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
Name = Literal["train", "validation", "test"]
ID_PREFIX: dict[Name, str] = {"train": "train", "validation": "validation", "test": "heldout"}
"""How prompt ids begin. Each answer's random numbers depend on its prompt's id, so these stay as they are."""


@dataclass(frozen=True, slots=True)
class Kept(Sequence[T], Generic[T]):
    """Items that a run can use, and those of their data set that it cannot."""

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
class _Record:
    """One row, read: a prompt as text, and its right answers."""

    id: str
    prompt: str
    question: str
    answers: tuple[str, ...]


def load_prompts(
    config: RunConfig, name: Name, tokenizer: PreTrainedTokenizerBase | None = None
) -> Kept[Prompt]:
    """The prompts of data.train, data.validation or data.test.

    Raises DataError for data that is missing, empty, lacks a column or has nothing short enough.
    """
    tokenizer = tokenizer or load_tokenizer(config.student, "student")
    records = _read(config.data, name, tokenizer)
    limit = config.data.max_prompt_tokens
    prompts, dropped = [], []
    for record, ids in zip(records, _prompt_ids(records, config.data, tokenizer), strict=True):
        if len(ids) > limit:
            dropped.append(_too_long(record.id, "prompt", len(ids), "data.max_prompt_tokens", limit))
            continue
        prompts.append(Prompt(id=record.id, token_ids=ids, text=record.question, references=record.answers))
    return _kept(prompts, dropped, name)


def load_passages(
    config: RunConfig,
    name: Name,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    may_be_none: bool = False,
) -> Kept[Passage]:
    """Prompts with the (first) right answer of each, the end-of-sequence token behind it.

    Answers longer than rollout.max_new_tokens are dropped, as are rows without one. Raises DataError as
    `load_prompts` does; with `may_be_none`, not for having dropped all.
    """
    tokenizer = tokenizer or load_tokenizer(config.student, "student")
    records = _read(config.data, name, tokenizer)
    answers = tokenize(tokenizer, [r.answers[0] if r.answers else "" for r in records], special=False)
    end = eos_id(tokenizer)
    most_prompt, most_answer = config.data.max_prompt_tokens, config.rollout.max_new_tokens
    passages, dropped = [], []
    for record, ids, answer in zip(
        records, _prompt_ids(records, config.data, tokenizer), answers, strict=True
    ):
        if not record.answers:
            drop = Dropped(
                prompt_id=record.id, stage="prompts", reason="no_answer", detail="the row has none"
            )
        elif len(ids) > most_prompt:
            drop = _too_long(record.id, "prompt", len(ids), "data.max_prompt_tokens", most_prompt)
        elif len(answer) + 1 > most_answer:
            drop = _too_long(record.id, "answer", len(answer) + 1, "rollout.max_new_tokens", most_answer)
        else:
            ended = np.append(answer, np.int32(end))
            passages.append(Passage(prompt_id=record.id, prompt_ids=ids, answer_ids=ended))
            continue
        dropped.append(drop)
    if may_be_none and not passages:
        return Kept((), tuple(dropped))
    return _kept(passages, dropped, name)


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
            raise TypeError("blocks are named by their place: take them one by one")
        block = self.ids[index]
        return Passage(prompt_id=f"text/{self.positions[index]}", prompt_ids=block[:1], answer_ids=block[1:])

    def split(self, count: int) -> tuple[Blocks, Blocks]:
        """(the others, `count` held out), the latter evenly spread. Raises DataError if no other is left."""
        if count >= len(self):
            raise DataError(
                f"text.validation_blocks = {count} leaves nothing of {len(self)} blocks to learn from; lower"
                " it, or give more text"
            )
        held = np.zeros(len(self), bool)
        held[np.arange(count) * len(self) // max(1, count)] = True
        return Blocks(self.ids[~held], self.positions[~held]), Blocks(self.ids[held], self.positions[held])


def load_blocks(config: RunConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> Blocks:
    """The plain text of `text`: documents joined by the end-of-sequence token and cut into blocks.

    The rest that fills no block is left out. Raises DataError if there is not one whole block.
    """
    assert config.text is not None, "no text in this run"
    tokenizer = tokenizer or load_tokenizer(config.student, "student")
    end = np.array([eos_id(tokenizer)], np.int32)
    pieces: list[npt.NDArray[np.int32]] = []
    for ids in tokenize(tokenizer, documents(config.text), special=False):
        pieces += [ids, end]
    stream = np.concatenate(pieces) if pieces else end[:0]
    size = config.text.block_tokens
    if len(stream) < size:
        raise DataError(
            f"text.path = {config.text.path}: {len(stream)} tokens do not fill one block of"
            f" text.block_tokens = {size}; give more text or lower it"
        )
    blocks = stream[: len(stream) // size * size].reshape(-1, size)
    return Blocks(blocks, np.arange(len(blocks)))


def eos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends an answer. Raises DataError if the tokenizer names none."""
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"the tokenizer of {tokenizer.name_or_path} has no end-of-sequence token, so no answer could end;"
            " set eos_token in its tokenizer_config.json"
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


def _prompt_ids(
    records: Sequence[_Record], data: DataConfig, tokenizer: PreTrainedTokenizerBase
) -> list[npt.NDArray[np.int32]]:
    # A chat template writes its own marks; the others leave the first token to the tokenizer.
    ids = tokenize(tokenizer, [r.prompt for r in records], special=data.template != "chat")
    end = tokenizer.eos_token_id
    # Some tokenizers also close what they encode: a closed prompt has no answer.
    return [one[:-1] if data.template != "chat" and len(one) > 1 and one[-1] == end else one for one in ids]


def _read(data: DataConfig, name: Name, tokenizer: PreTrainedTokenizerBase) -> list[_Record]:
    source: PromptData | None = getattr(data, name)
    assert source is not None, f"no data.{name} in this run"
    if data.template == "chat" and not tokenizer.chat_template:
        raise DataError(
            f"data.template = chat, and the tokenizer of {tokenizer.name_or_path} has no chat template; set"
            " data.template=alpaca or data.template=plain"
        )
    key = f"data.{name}"
    rows = read_records(source.path, source.split, source.subset, source.limit, key)
    if source.messages is not None:
        chats = column_of(rows, source.messages, f"{key}.messages", source.path)
        return [
            _record_of_chat(chat, f"{ID_PREFIX[name]}/{n}", data, tokenizer, f"{key}.messages")
            for n, chat in enumerate(chats)
        ]
    return _records_of_columns(rows, source, name, data, tokenizer)


def _records_of_columns(
    rows: Any, source: PromptData, name: Name, data: DataConfig, tokenizer: PreTrainedTokenizerBase
) -> list[_Record]:
    key = f"data.{name}"
    instructions = column_of(rows, source.instruction, f"{key}.instruction", source.path)
    inputs = column_of(rows, source.input, f"{key}.input", source.path, may_lack="input")
    outputs = column_of(rows, source.output, f"{key}.output", source.path, may_lack="output")
    records = []
    for n, (instruction, further, output) in enumerate(zip(instructions, inputs, outputs, strict=True)):
        if not isinstance(instruction, str) or not instruction.strip():
            raise DataError(
                f"{key}.instruction = {source.instruction}: row {n} of {source.path} holds"
                f" {instruction!r}, and a prompt needs text; remove the row or name another column"
            )
        further = str(further).strip() if further is not None else ""
        question = plain(instruction, further)
        if data.template == "chat":
            turns = [{"role": "user", "content": question}]
            prompt = _render_chat(turns, f"{ID_PREFIX[name]}/{n}", data, tokenizer)
        else:
            prompt = alpaca(instruction, further) if data.template == "alpaca" else question
        answers = _answers(output, f"{key}.output = {source.output}: row {n} of {source.path}")
        records.append(_Record(f"{ID_PREFIX[name]}/{n}", prompt, question, answers))
    return records


def _answers(output: Any, where: str) -> tuple[str, ...]:
    found = [output] if isinstance(output, str) else list(output or []) if _is_list(output) else None
    if found is None or not all(isinstance(one, str) for one in found):
        raise DataError(f"{where} holds {output!r}; an answer is text or a list of texts")
    return tuple(one for one in found if one.strip())


def _is_list(value: Any) -> bool:
    return value is None or isinstance(value, list | tuple)


def _record_of_chat(
    chat: Any, id: str, data: DataConfig, tokenizer: PreTrainedTokenizerBase, key: str
) -> _Record:
    if not isinstance(chat, list) or not all(
        isinstance(turn, Mapping) and isinstance(turn.get("content"), str) and turn.get("role")
        for turn in chat
    ):
        raise DataError(f"{key}: {id} is no list of {{role, content}} with text; found {str(chat)[:200]}")
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in chat]
    answers: tuple[str, ...] = ()
    if turns and turns[-1]["role"] == "assistant":
        answers = _answers(turns.pop()["content"], f"{key}: {id}")
    questions = [turn["content"] for turn in turns if turn["role"] == "user"]
    if not questions or not questions[-1].strip():
        raise DataError(f"{key}: {id} has no user turn with text before the answer; remove the row")
    return _Record(id, _render_chat(turns, id, data, tokenizer), questions[-1], answers)


def _render_chat(
    turns: list[dict[str, str]], id: str, data: DataConfig, tokenizer: PreTrainedTokenizerBase
) -> str:
    if data.system_prompt and turns[0]["role"] != "system":
        turns = [{"role": "system", "content": data.system_prompt}, *turns]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except jinja2.TemplateError as refusal:
        raise DataError(
            f"data.template = chat: the chat template of {tokenizer.name_or_path} refuses {id}: {refusal};"
            " mend the row, drop data.system_prompt, or set another data.template"
        ) from refusal
    return str(text)


def _too_long(id: str, part: str, length: int, key: str, limit: int) -> Dropped:
    return Dropped(
        prompt_id=id, stage="prompts", reason=f"{part}_too_long", detail=f"{length} tokens > {key} = {limit}"
    )


def _kept(items: Iterable[T], dropped: Sequence[Dropped], name: Name) -> Kept[T]:
    kept = Kept(tuple(items), tuple(dropped))
    if not len(kept):
        first = dropped[0]
        raise DataError(
            f"data.{name}: none of {len(dropped)} records can be used; {first.prompt_id} was dropped for"
            f" {first.reason} ({first.detail}); raise the limit or mend the data"
        )
    return kept

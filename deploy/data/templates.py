"""How a record becomes the text of a prompt, by one of the templates, and its right answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jinja2

from ...common.config.data import PromptSettings
from ...common.errors import DataError, Fault
from .readers import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ALPACA_ALONE = (
    "Below is an instruction that describes a task."
    " Write a response that appropriately completes the request."
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context."
    " Write a response that appropriately completes the request."
)


@dataclass(frozen=True, slots=True)
class Record:
    """One row as text: a prompt, and its right answers."""

    id: str
    prompt: str
    question: str
    """What is asked, without the template."""
    answers: tuple[str, ...]


def alpaca(instruction: str, further: str = "") -> str:
    """The template of the paper (its appendix, after Stanford Alpaca); no input block where there is none."""
    head = ALPACA_WITH_INPUT if further else ALPACA_ALONE
    block = f"### Input:\n{further}\n\n" if further else ""
    return f"{head}\n\n### Instruction:\n{instruction}\n\n{block}### Response:\n"


def plain(instruction: str, further: str = "") -> str:
    """The instruction as it is, and its input on the next line."""
    return f"{instruction}\n{further}" if further else instruction


def records_of(
    rows: Rows, id_prefix: str, settings: PromptSettings, tokenizer: PreTrainedTokenizerBase
) -> list[Record]:
    """Every row as text; row 17 is called `id_prefix`/17. Raises DataError at the first that is unusable."""
    if settings.template == "chat" and not tokenizer.chat_template:
        key = settings.key("template")
        raise DataError(
            Fault(
                key,
                settings.template,
                f"needs a chat template, and the tokenizer of {tokenizer.name_or_path} has none",
                f"set {key}=alpaca or {key}=plain",
            )
        )
    if rows.source.messages is not None:
        return [
            _record_of_chat(chat, f"{id_prefix}/{n}", rows, settings, tokenizer)
            for n, chat in enumerate(rows.column("messages"))
        ]
    return _records_of_columns(rows, id_prefix, settings, tokenizer)


def _records_of_columns(
    rows: Rows, id_prefix: str, settings: PromptSettings, tokenizer: PreTrainedTokenizerBase
) -> list[Record]:
    instructions = rows.column("instruction")
    inputs = rows.column("input", may_lack="input")
    outputs = rows.column("output", may_lack="output")
    records = []
    for n, (instruction, further, output) in enumerate(zip(instructions, inputs, outputs, strict=True)):
        id, row = f"{id_prefix}/{n}", f"row {n} of {rows.source.path}"
        if not isinstance(instruction, str) or not instruction.strip():
            raise DataError(
                rows.fault(
                    "instruction",
                    f"{row} holds {instruction!r}, and a prompt needs text",
                    "remove the row or name another column",
                )
            )
        further = str(further).strip() if further is not None else ""
        question = plain(instruction, further)
        if settings.template == "chat":
            prompt = _render_chat([{"role": "user", "content": question}], id, settings, tokenizer)
        else:
            prompt = alpaca(instruction, further) if settings.template == "alpaca" else question
        records.append(Record(id, prompt, question, _answers(output, rows, "output", row)))
    return records


def _answers(output: Any, rows: Rows, setting: str, row: str) -> tuple[str, ...]:
    listed = output is None or isinstance(output, list | tuple)
    found = [output] if isinstance(output, str) else list(output or []) if listed else None
    if found is None or not all(isinstance(one, str) for one in found):
        raise DataError(
            rows.fault(
                setting,
                f"{row} holds {output!r}, and an answer is text or a list of texts",
                "mend the row or name another column",
            )
        )
    return tuple(one for one in found if one.strip())


def _record_of_chat(
    chat: Any, id: str, rows: Rows, settings: PromptSettings, tokenizer: PreTrainedTokenizerBase
) -> Record:
    if not isinstance(chat, list) or not all(
        isinstance(turn, Mapping) and isinstance(turn.get("content"), str) and turn.get("role")
        for turn in chat
    ):
        raise DataError(
            rows.fault(
                "messages",
                f"{id} is not a list of {{role, content}} with text but {str(chat)[:200]}",
                "mend the row or name another column",
            )
        )
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in chat]
    answers: tuple[str, ...] = ()
    if turns and turns[-1]["role"] == "assistant":
        answers = _answers(turns.pop()["content"], rows, "messages", id)
    questions = [turn["content"] for turn in turns if turn["role"] == "user"]
    if not questions or not questions[-1].strip():
        reason = f"{id} has no user turn with text before the answer"
        raise DataError(rows.fault("messages", reason, "remove the row"))
    return Record(id, _render_chat(turns, id, settings, tokenizer), questions[-1], answers)


def _render_chat(
    turns: Sequence[dict[str, str]], id: str, settings: PromptSettings, tokenizer: PreTrainedTokenizerBase
) -> str:
    if settings.system_prompt and turns[0]["role"] != "system":
        turns = [{"role": "system", "content": settings.system_prompt}, *turns]
    try:
        text = tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True)
    except jinja2.TemplateError as refusal:
        key = settings.key("template")
        raise DataError(
            Fault(
                key,
                settings.template,
                f": the chat template of {tokenizer.name_or_path} refuses {id}: {refusal}",
                f"mend the row, remove {settings.key('system_prompt')}, or set another {key}",
                also=(settings.key("system_prompt"),),
            )
        ) from refusal
    return str(text)

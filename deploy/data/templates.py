"""Records of a data set: what is asked, in which chat, and its right answers; and the two plain templates."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ...common.errors import DataError, Fault
from .chats import Chat, UnusableChat, chat_of, text_of
from .readers import Rows

ALPACA_ALONE = (
    "Below is an instruction that describes a task."
    " Write a response that appropriately completes the request."
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context."
    " Write a response that appropriately completes the request."
)
CHAT_COLUMNS = ("messages", "conversations", "conversation", "chat")
"""What data sets call their chats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record, before any template."""

    id: str
    """Its data set and its number there from 0, such as train/17."""
    place: str
    """Where it stands, such as "line 18 of prompts.jsonl"."""
    instruction: str
    """What is asked; of a chat the last text of the user."""
    further: str
    """Further input to the instruction; "" if there is none, and in chats."""
    system: str
    """The system prompt of this record; "" if it has none of its own, and in chats."""
    chat: Chat | None
    """The chat, if the data set has chats; the given answer is its last turn."""
    answers: tuple[str, ...]
    """Right answers as text; none where there are none, or where the answer of a chat calls tools alone."""

    @property
    def question(self) -> str:
        """What is asked, without the template."""
        return plain(self.instruction, self.further)

    @property
    def is_answered(self) -> bool:
        """Whether there is a right answer."""
        return bool(self.answers) or (self.chat is not None and self.chat.answer is not None)

    def as_chat(self) -> Chat:
        """The record as a chat that ends with the (first) right answer, if there is one."""
        if self.chat is not None:
            return self.chat
        turns = [*_system_turn(self.system), {"role": "user", "content": self.question}]
        if self.answers:
            turns.append({"role": "assistant", "content": self.answers[0]})
        return Chat(turns=tuple(turns))


def alpaca(instruction: str, further: str = "") -> str:
    """The template of the paper (its appendix, after Stanford Alpaca); no input block where there is none."""
    head = ALPACA_WITH_INPUT if further else ALPACA_ALONE
    block = f"### Input:\n{further}\n\n" if further else ""
    return f"{head}\n\n### Instruction:\n{instruction}\n\n{block}### Response:\n"


def plain(instruction: str, further: str = "") -> str:
    """The instruction as it is, and its input on the next line."""
    return f"{instruction}\n{further}" if further else instruction


def records_of(rows: Rows, id_prefix: str) -> list[Record]:
    """Every record; number 17 is called `id_prefix`/17. Raises DataError at the first that is unusable."""
    return _of_chats(rows, id_prefix) if rows.source.messages is not None else _of_columns(rows, id_prefix)


def as_read(record: Record) -> dict[str, Any]:
    """What is asked, in the columns that answers are written with."""
    if record.chat is None:
        own = {"system": record.system} if record.system else {}
        return {"instruction": record.instruction, "input": record.further, **own}
    tools = {"tools": list(record.chat.tools)} if record.chat.tools else {}
    return {"messages": list(record.chat.context), **tools}


def _of_columns(rows: Rows, id_prefix: str) -> list[Record]:
    _refuse_unnamed_chats(rows)
    instructions = rows.column("instruction")
    inputs = rows.column("input", may_lack="input")
    outputs = rows.column("output", may_lack="output")
    systems = rows.column("system")
    records = []
    for n, (instruction, further, output) in enumerate(zip(instructions, inputs, outputs, strict=True)):
        if not isinstance(instruction, str) or not instruction.strip():
            reason = f"{rows.place(n)} holds {instruction!r}, and a prompt needs text"
            raise DataError(rows.fault("instruction", reason, "remove the record or name another column"))
        if further is not None and not isinstance(further, str):
            reason = f"{rows.place(n)} holds {further!r}, and an input is text"
            raise DataError(
                rows.fault("input", reason, "write it in quotes, as text, or name another column")
            )
        records.append(
            Record(
                id=f"{id_prefix}/{n}",
                place=rows.place(n),
                instruction=instruction,
                further=(further or "").strip(),
                system=_system(systems[n], rows, n),
                chat=None,
                answers=_answers(output, rows, "output", n),
            )
        )
    return records


def _refuse_unnamed_chats(rows: Rows) -> None:
    """A data set of chats whose column no setting names is told so."""
    names, column = rows.table.names, rows.source.instruction
    chats = [name for name in CHAT_COLUMNS if name in names]
    if column in names or not chats:
        return
    key = f"{rows.key}.instruction"
    reason = f": {rows.source.path} has no such column; it has {', '.join(names)}"
    raise DataError(Fault(key, column, reason, f"if these are chats, set {rows.key}.messages={chats[0]}"))


def _answers(output: Any, rows: Rows, setting: str, n: int) -> tuple[str, ...]:
    listed = output is None or isinstance(output, list | tuple)
    found = [output] if isinstance(output, str) else list(output or []) if listed else None
    if found is None or not all(isinstance(one, str) for one in found):
        reason = f"{rows.place(n)} holds {output!r}, and an answer is text or a list of texts"
        raise DataError(rows.fault(setting, reason, "mend the record or name another column"))
    return tuple(one for one in found if one.strip())


def _of_chats(rows: Rows, id_prefix: str) -> list[Record]:
    tools, systems = rows.column("tools", may_lack="tools"), rows.column("system")
    records = []
    for n, value in enumerate(rows.column("messages")):
        place = rows.place(n)
        try:
            chat = chat_of(value, tools[n])
            if chat.turns and chat.turns[0]["role"] not in ("system", "developer"):
                chat = replace(chat, turns=(*_system_turn(_system(systems[n], rows, n)), *chat.turns))
        except UnusableChat as error:
            fix = "mend the record or name another column"
            raise DataError(rows.fault("messages", f"{place} {error}", fix)) from error
        if not chat.question.strip():
            reason = f"{place} has no user turn with text before the answer"
            raise DataError(rows.fault("messages", reason, "remove the record"))
        answer = chat.answer
        if answer is not None and not text_of(answer).strip() and not answer.get("tool_calls"):
            chat, answer = replace(chat, turns=chat.turns[:-1]), None  # an answer without words is none
        text = text_of(answer) if answer is not None else ""
        records.append(
            Record(
                id=f"{id_prefix}/{n}",
                place=place,
                instruction=chat.question,
                further="",
                system="",
                chat=chat,
                answers=(text,) if text.strip() else (),
            )
        )
    return records


def _system(value: Any, rows: Rows, n: int) -> str:
    if value is not None and not isinstance(value, str):
        reason = f"{rows.place(n)} holds {value!r}, and a system prompt is text"
        raise DataError(rows.fault("system", reason, "mend the record or name another column"))
    return value or ""


def _system_turn(text: str) -> list[dict[str, Any]]:
    return [{"role": "system", "content": text}] if text.strip() else []

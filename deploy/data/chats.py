"""Chats as data sets write them, brought to the one form that chat templates take; every field is handed on.

{role, content, ...}    OpenAI's and Hugging Face's form: role names by `ROLES`, content as text, as a
                        list of text parts, or absent beside tool_calls
{from, value, ...}      ShareGPT's form, by the same names
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ROLES: Mapping[str, str] = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "bot", "model", "ai", "chatgpt", "chatbot", "bing", "bard"), "assistant"),
    **dict.fromkeys(("function", "function_response", "observation", "tool_response"), "tool"),
    "function_call": "function_call",
}
"""Names that data sets have for the roles of templates; any other name is handed on as it is."""
CALL = "function_call"
"""A role of ShareGPT: a turn of the assistant whose text is a call, {"name": ..., "arguments": ...}."""
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Fields in which an assistant turn keeps its thoughts apart from its content."""
Turn = dict[str, Any]


class UnusableChat(ValueError):
    """A chat cannot be used; the message is the rest of a sentence that begins with its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """Turns, and the tools that they may call."""

    turns: tuple[Turn, ...]
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def context(self) -> tuple[Turn, ...]:
        """All turns before the answer."""
        return self.turns[:-1] if self.answer is not None else self.turns

    @property
    def answer(self) -> Turn | None:
        """The last turn, if it is the assistant's."""
        return self.turns[-1] if self.turns and self.turns[-1]["role"] == "assistant" else None

    @property
    def question(self) -> str:
        """The last text of the user before the answer; "" if there is none."""
        asked = [text_of(turn) for turn in self.context if turn["role"] == "user"]
        return asked[-1] if asked else ""

    def up_to(self, turn: int) -> Chat:
        """The same chat, ending with turn number `turn` (from 0)."""
        return Chat(turns=self.turns[: turn + 1], tools=self.tools)


def chat_of(value: Any, tools: Any = None) -> Chat:
    """A chat of any form in the one that templates take. Raises UnusableChat."""
    if isinstance(value, str):
        value = _from_json(value, "the chat")
    if not isinstance(value, list):
        raise UnusableChat(f"is no list of turns but {_short(value)}")
    return Chat(turns=tuple(_turn(one, n) for n, one in enumerate(value, 1)), tools=_tools(tools))


def text_of(turn: Turn) -> str:
    """The text of a turn, parts joined by line breaks; "" if it has none."""
    content = turn.get("content")
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content)
    return content or ""


def flattened(turns: Sequence[Turn]) -> list[Turn]:
    """The turns with their parts joined, for templates that take text alone."""
    return [
        turn | {"content": text_of(turn)} if isinstance(turn.get("content"), list) else turn for turn in turns
    ]


def calls_of(turn: Turn) -> Iterator[Mapping[str, Any]]:
    """The functions that a turn calls, as {name, arguments}."""
    for call in turn.get("tool_calls") or ():
        yield call.get("function", call)


def _turn(value: Any, number: int) -> Turn:
    if not isinstance(value, Mapping):
        raise UnusableChat(f"has a turn {number} that is no {{role, content}} but {_short(value)}")
    turn = dict(value)
    if "role" not in turn and "from" in turn:
        turn = {"role": turn.pop("from"), "content": turn.pop("value", None), **turn}
    role = turn.get("role")
    if not isinstance(role, str) or not role:
        raise UnusableChat(f"has a turn {number} without a role: {_short(value)}")
    turn["role"] = ROLES.get(role.lower(), role)
    if turn["role"] == CALL:
        turn = _call_turn(turn, number)
    if turn.get("tool_calls"):
        _check_calls(turn["tool_calls"], number)
    else:
        turn.pop("tool_calls", None)  # null or empty: there is none
    _check_content(turn, number)
    return turn


def _check_content(turn: Turn, number: int) -> None:
    content = turn.get("content")
    if isinstance(content, str):
        return
    if isinstance(content, list):
        for part in content:
            kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
            if kind != "text" or not isinstance(part.get("text"), str):
                raise UnusableChat(
                    f"has a part of type {kind} in turn {number}, and models here read text alone"
                )
        return
    says_otherwise = turn.get("tool_calls") or any(isinstance(turn.get(name), str) for name in REASONING)
    if content is None and turn["role"] == "assistant" and says_otherwise:
        turn["content"] = ""
        return
    raise UnusableChat(f"has no text in turn {number} ({turn['role']}) but {_short(content)}")


def _check_calls(calls: Any, number: int) -> None:
    if isinstance(calls, list) and all(isinstance(call, Mapping) for call in calls):
        functions = [call.get("function", call) for call in calls]
        if all(isinstance(one, Mapping) and isinstance(one.get("name"), str) for one in functions):
            return
    raise UnusableChat(
        f"has tool_calls in turn {number} that are no list of {{function: {{name, arguments}}}}"
    )


def _call_turn(turn: Turn, number: int) -> Turn:
    call = _from_json(turn.get("content"), f"the function_call of turn {number}")
    if not isinstance(call, Mapping) or "name" not in call:
        raise UnusableChat(f"has a function_call in turn {number} that is no {{name, arguments}}")
    function = {"name": call["name"], "arguments": call.get("arguments", {})}
    return turn | {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": function}],
    }


def _tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    if isinstance(value, str):
        value = _from_json(value, "tools") if value.strip() else None
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        raise UnusableChat(f"has tools that are no list of schemas but {_short(value)}")
    return tuple(value)


def _from_json(value: Any, what: str) -> Any:
    try:
        return json.loads(value)
    except (TypeError, ValueError) as error:
        raise UnusableChat(f"has {what} as text that is no JSON: {_short(value)}") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."

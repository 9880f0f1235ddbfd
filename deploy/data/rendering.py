"""Records as text, by a template: prompts to answer, and given answers as the template ends them.

A chat is rendered by the tokenizer's own template, as `apply_chat_template` does, with every field handed on.
What a template leaves out is refused by name. Control tokens that are written out in a record are put aside
(see `control_tokens`), unless they are allowed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from ...common.config.data import PromptSettings
from ...common.errors import ABSENT, DataError, Fault
from .chats import REASONING, Chat, Turn, calls_of, flattened, text_of
from .control_tokens import ControlTokens
from .templates import Record, alpaca

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "minillm-probe"
"""A text that shows what a template does with the text of a turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A given answer in its template, with control tokens put aside."""

    text: str
    """Prompt and answer as the template renders them, up to the token that ends the answer."""
    ended: bool
    """Whether that token is there; if not, the end-of-sequence token follows."""
    turn: int | None = None
    """Which turn of the chat this is, where several are learned."""


class Renderer:
    """Puts records into the template of a run, for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: PromptSettings, started: datetime):
        """`started` is the time that templates are told. Raises DataError where there is no template."""
        self._tokenizer, self._settings, self._how = tokenizer, settings, settings.how
        self.control = ControlTokens(tokenizer)
        self._eos = tokenizer.eos_token if isinstance(tokenizer.eos_token, str) else None
        self._chat = _ChatTemplate(tokenizer, settings, started) if self._how.template == "chat" else None
        closing = self._chat.closing if self._chat is not None else None
        marks = self.control.marks_in(closing) if closing else []
        self._closing = closing
        self.ending = marks[0] if marks else None
        """What the chat template closes an answer with, if that is one token."""
        self._ends = [text for text in (self.ending, self._eos) if text]
        self._turn_marks = {*self._ends, *(self.control.marks_in(self._chat.opening) if self._chat else ())}
        self.other_endings: set[str] = set()
        """Further tokens that turns ended with, such as those that call tools."""

    @property
    def end_texts(self) -> list[str]:
        """Tokens that end a turn by the template; none where there is no template, or it names none."""
        return [*([self.ending] if self.ending else []), *sorted(self.other_endings)]

    @property
    def chat_template(self) -> str | None:
        """The chat template of data.chat_template, if there is one."""
        return self._chat.given if self._chat is not None else None

    @property
    def is_chat(self) -> bool:
        """Whether the tokenizer's chat template is used: it writes all marks itself."""
        return self._chat is not None

    def prompt(self, record: Record) -> str:
        """The text that answers are sampled to. Raises DataError for what the template cannot render."""
        if self._chat is not None:
            chat = record.as_chat()
            return self._rendered(chat.context, chat, record, generation=True)
        if self._how.template == "alpaca":
            return self._aside(alpaca(record.instruction, record.further))
        return self._aside(record.question)

    def answer(self, record: Record) -> str:
        """The (first) right answer as text behind a prompt without chat template."""
        return self._answer_text(record.answers[0])

    def given(self, record: Record, *, all_turns: bool = False) -> list[Given]:
        """The given answer of a record's chat, or of every turn of the assistant; in a chat template only."""
        chat = record.as_chat()
        last = len(chat.turns) - 1
        turns = [n for n, turn in enumerate(chat.turns) if turn["role"] == "assistant" and n > 0]
        found = []
        for n in turns if all_turns else [last]:
            whole = chat.up_to(n)
            text, ended = self._cut(self._rendered(whole.turns, whole, record, generation=False))
            found.append(Given(text=text, ended=ended, turn=n if all_turns else None))
        return found

    def prompt_of_turn(self, record: Record, turn: int) -> str:
        """The prompt to which turn number `turn` of a record's chat is the answer."""
        chat = record.as_chat().up_to(turn)
        return self._rendered(chat.context, chat, record, generation=True)

    def opening_of(self, prompt: str) -> str:
        """What a rendered prompt ends with to open an answer."""
        assert self._chat is not None, "only chats are opened so"
        return self._chat.opened if prompt.endswith(self._chat.opened) else ""

    def reference(self, record: Record) -> tuple[str, ...]:
        """The right answers as text; of one that calls tools, the call as the template writes it."""
        if record.chat is None or self._chat is None or not (record.chat.answer or {}).get("tool_calls"):
            return record.answers
        (given,) = self.given(record)
        behind = given.text[len(_common(self.prompt(record), given.text)) :]
        for end in self.end_texts:
            behind = behind.removesuffix(end)
        return (self.control.put_back(behind),)

    def _rendered(self, turns: Sequence[Turn], chat: Chat, record: Record, *, generation: bool) -> str:
        assert self._chat is not None, "only chats are rendered so"
        aside = [self._put_aside(turn) for turn in turns]
        tools = [self._aside(tool) for tool in chat.tools]
        try:
            return self._chat.render(aside, tools, generation=generation)
        except _Unrenderable as refusal:
            keys = self._settings
            raise DataError(
                Fault(
                    keys.key("template"),
                    self._how.template,
                    f": the chat template of {self._tokenizer.name_or_path} {refusal} ({record.place})",
                    f"mend the record, or set {keys.key('chat_template')} to a template that can"
                    + (f", or remove {keys.key('system_prompt')}" if self._how.system_prompt else ""),
                    also=(keys.key("system_prompt"), keys.key("chat_template")),
                )
            ) from refusal

    def _put_aside(self, turn: Turn) -> Turn:
        if turn["role"] != "assistant":
            return {name: value if name == "role" else self._aside(value) for name, value in turn.items()}
        # The model's own words may hold tokens that it speaks with, such as <think>, but no marks of turns.
        aside = {} if self._how.allow_control_tokens else {"content": self._answer_text(text_of(turn))}
        return turn | aside if isinstance(turn.get("content"), str) else turn

    def _aside(self, value: Any) -> Any:
        return value if self._how.allow_control_tokens else self.control.put_aside(value)

    def _answer_text(self, text: str) -> str:
        """An answer without the end that is written out behind it, and with no other mark of a turn."""
        for end in self._ends:
            if text.rstrip().endswith(end):
                text = text.rstrip().removesuffix(end)
                break
        return text if self._how.allow_control_tokens else self.control.put_aside(text, self._turn_marks)

    def _cut(self, text: str) -> tuple[str, bool]:
        """(a rendered chat up to the token that ends its last turn, whether there is one)."""
        if self._closing and text.endswith(self._closing):
            start = len(text) - len(self._closing)
            if self.ending is None:
                return text[:start], False
            return text[: start + self._closing.index(self.ending) + len(self.ending)], True
        behind = text[len(self._without_tail(text)) :]
        marks = self.control.marks_in(behind)
        if not marks:
            return text, False
        end = self.ending if self.ending in marks else marks[-1]
        assert end is not None, "it is one of the marks"
        if end != self.ending:
            self.other_endings.add(end)
            return text[: text.rindex(end) + len(end)], True
        return text[: len(text) - len(behind) + behind.index(end) + len(end)], True

    def _without_tail(self, text: str) -> str:
        """The text without the marks and white space at its end."""
        while True:
            shorter = text.rstrip()
            for mark in self.control.texts:
                shorter = shorter.removesuffix(mark)
            if shorter == text:
                return text
            text = shorter


def end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends an answer. Raises DataError if the tokenizer names none."""
    if tokenizer.eos_token_id is None:
        reason = (
            f"the tokenizer of {tokenizer.name_or_path} has no end-of-sequence token, so no answer could end"
        )
        raise DataError(Fault("", ABSENT, reason, "set eos_token in its tokenizer_config.json"))
    return int(str(tokenizer.eos_token_id))


class _Unrenderable(Exception):
    """A chat that the template cannot express; the message is the rest of a sentence about the template."""


class _ChatTemplate:
    """A chat template, what it does with texts, parts and calls, and the variables that it is given."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: PromptSettings, started: datetime):
        self._tokenizer, self._system = tokenizer, settings.how.system_prompt
        self._variables = dict(settings.how.chat_template_kwargs)
        self.given = _template_file(settings)
        """The template of the settings, in place of the tokenizer's own."""
        if self.given is None and not tokenizer.chat_template:
            key = settings.key("template")
            raise DataError(
                Fault(
                    key,
                    settings.how.template,
                    f"needs a chat template, and the tokenizer of {tokenizer.name_or_path} has none",
                    f"set {key}=alpaca or {key}=plain, or {settings.key('chat_template')} to a file",
                )
            )
        source = self.given or tokenizer.chat_template
        self._source = "\n".join(source.values()) if isinstance(source, dict) else str(source)
        if "strftime_now" in self._source and "strftime_now" not in self._variables:
            self._variables["strftime_now"] = started.strftime
        said = self._probe([{"role": "user", "content": PROBE}])
        in_parts = self._probe([{"role": "user", "content": [{"type": "text", "text": PROBE}]}])
        self._takes_parts = said is not None and in_parts == said
        self.opening = said or ""
        """What the template writes around a user's turn."""
        to_answer = self._probe([{"role": "user", "content": PROBE}], generation=True)
        self.opened = (to_answer or "").removeprefix(self.opening)
        """What it opens an answer with, behind the user's turn."""
        answered = self._probe([{"role": "user", "content": "?"}, {"role": "assistant", "content": PROBE}])
        self.closing = answered.rpartition(PROBE)[2] if answered and PROBE in answered else None
        """What it writes behind an answer; None where that cannot be found out."""

    def render(self, turns: Sequence[Turn], tools: Sequence[Any], *, generation: bool) -> str:
        """A chat as text. Raises _Unrenderable for what the template refuses or leaves out."""
        turns = list(turns) if self._takes_parts else flattened(turns)
        if self._system and (not turns or turns[0]["role"] not in ("system", "developer")):
            turns = [{"role": "system", "content": self._system}, *turns]
        text = self._apply(turns, tools, generation)
        if any(turn.get("tool_calls") for turn in turns) and (other := _arguments_as_json(turns, text)):
            turns, text = other, self._apply(other, tools, generation)
        if missing := self._left_out(turns, tools, text, answered=not generation):
            raise _Unrenderable(f"leaves out {missing}")
        return text

    def _apply(self, turns: Sequence[Turn], tools: Sequence[Any], generation: bool) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(turns),
                    tools=list(tools) or None,
                    chat_template=self.given,
                    tokenize=False,
                    add_generation_prompt=generation,
                    **self._variables,
                )
            )
        except (jinja2.TemplateError, TypeError, KeyError, ValueError) as refusal:
            raise _Unrenderable(f"refuses it: {refusal}") from refusal

    def _probe(self, turns: Sequence[Turn], *, generation: bool = False) -> str | None:
        try:
            return self._apply(turns, (), generation=generation)
        except _Unrenderable:
            return None

    def _left_out(
        self, turns: Sequence[Turn], tools: Sequence[Any], text: str, *, answered: bool
    ) -> str | None:
        """What of the chat is not in its text; templates may trim, indent, and drop earlier thoughts."""
        squeezed = _squeezed(text)
        for number, turn in enumerate(turns, 1):
            said = text_of(turn)
            if turn["role"] == "assistant":
                said = said.rpartition("</think>")[2]
            if not _holds(squeezed, said):
                return f"the text of turn {number} ({turn['role']})"
            for call in calls_of(turn):
                keys = call.get("arguments") if isinstance(call.get("arguments"), dict) else ()
                if not all(_holds(squeezed, str(word)) for word in (call["name"], *(keys or ()))):
                    return f"the call of {call['name']} in turn {number}"
            for field in REASONING:
                is_answer = answered and number == len(turns)
                thought = str(turn.get(field) or "")
                must = is_answer or field not in self._source
                if must and not _holds(squeezed, thought):
                    return f"{field} of turn {number}"
        for tool in tools:
            name = str((tool.get("function") or tool).get("name", ""))
            if not _holds(squeezed, name):
                return f"the tool {name}"
        return None


def _template_file(settings: PromptSettings) -> str | None:
    path = settings.how.chat_template
    if path is None:
        return None
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        key = settings.key("chat_template")
        raise DataError(
            Fault(key, path, f"cannot be read: {error}", "name a file with a Jinja template")
        ) from error


def _arguments_as_json(turns: Sequence[Turn], text: str) -> list[Turn] | None:
    """The turns with the arguments of calls in the other form, where the template wrote them as no JSON.

    Data sets keep arguments as JSON text or as objects. A template that writes JSON itself would quote a
    text once more, and one that does not would write an object in Python's way.
    """
    squeezed = _squeezed(text)
    for call in (call for turn in turns for call in calls_of(turn)):
        arguments = call.get("arguments")
        if isinstance(arguments, str):
            wrong = _squeezed(json.dumps(arguments, ensure_ascii=False)) in squeezed
        else:
            as_json = _squeezed(json.dumps(arguments, ensure_ascii=False))
            wrong = bool(arguments) and as_json not in squeezed and _squeezed(str(arguments)) in squeezed
        if wrong:
            return [_with_calls(turn) for turn in turns]
    return None


def _with_calls(turn: Turn) -> Turn:
    if not turn.get("tool_calls"):
        return turn
    return turn | {"tool_calls": [_converted(call) for call in turn["tool_calls"]]}


def _converted(call: dict[str, Any]) -> dict[str, Any]:
    if "function" in call:
        return {**call, "function": _converted(call["function"])}
    arguments = call.get("arguments")
    if not isinstance(arguments, str):
        return {**call, "arguments": json.dumps(arguments, ensure_ascii=False)}
    try:
        return {**call, "arguments": json.loads(arguments)}
    except ValueError:
        return call


def _holds(squeezed: str, words: str) -> bool:
    """Whether a text holds these words, as they are or as JSON writes them, but for white space."""
    return _squeezed(words) in squeezed or _squeezed(json.dumps(words, ensure_ascii=False)[1:-1]) in squeezed


def _squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


def _common(one: str, other: str) -> str:
    """The longest common beginning of two texts."""
    end = next(
        (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
    return one[:end]

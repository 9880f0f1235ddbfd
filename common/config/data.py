"""Where prompts, answers and plain text come from, and how records become prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from ..errors import Fault
from .base import Count, Section

Template = Literal["alpaca", "chat", "plain"]


class PromptData(Section):
    """Where prompts (and answers, if there are any) come from."""

    path: str
    """A file (.jsonl .ndjson .json .csv .tsv .parquet .arrow, also with .gz or .zst behind it), a folder of
    them, or the name of a data set on the Hugging Face hub."""
    split: str = "train"
    """Split of a folder, a hub data set, or a .json file with records by split; any other file is one split,
    "train". A part of it: "train[:200]"."""
    subset: str | None = None
    """Configuration of a hub data set that has several."""
    instruction: str = "instruction"
    """Column with the question."""
    input: str | None = "input"
    """Column with further input to the question; rows may leave it empty. null = there is none. Under this
    default name a data set may lack it; any other name must exist."""
    output: str | None = "output"
    """Column with the right answer, a string or a list of them. null = there is none. As with `input`, only a
    column of this default name may be absent."""
    messages: str | None = None
    """Column with a chat in place of the three above: a list of {role, content, ...}, or ShareGPT's {from,
    value}. A last assistant turn is the answer. Needs data.template = chat."""
    system: str | None = None
    """Column with the system prompt of each record, where it has one. Needs data.template = chat."""
    tools: str | None = "tools"
    """Column with the schemas of the tools that a chat may call. As with `input`, only a column of this
    default name may be absent."""
    limit: Count | None = None
    """Use only the first so many records."""


class PromptSection(Section):
    """How records become prompts."""

    template: Template = "chat"
    """alpaca = the paper's template; chat = the tokenizer's own chat template, with instruction and input as
    one user turn; plain = the bare text. The latter two put the input on the next line."""
    chat_template: str | None = None
    """A file with a chat template (Jinja) in place of the tokenizer's own; exported students keep it."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further variables of the chat template, such as {enable_thinking: false}."""
    system_prompt: str | None = None
    """First message of a chat, where a record does not bring its own."""
    allow_control_tokens: bool = False
    """Read control tokens that are written out in a record, such as <|im_end|>, as the tokens; false = as the
    text that they are."""
    max_prompt_tokens: Count = 256
    """Longer prompts are dropped with a message, never cut."""


class DataConfig(PromptSection):
    """The data sets of a run and how records become prompts."""

    train: PromptData | None = None
    """Prompts to answer, or given answers. null = learn from `text` only (objective.kind = sft)."""
    validation: PromptData | None = None
    """Chooses the best student. null = the last student is kept, and nothing is measured while training."""
    test: PromptData | None = None
    """Measured before and after the run, never used to choose anything."""
    train_on: Literal["last", "all_assistant"] = "last"
    """Which turns of a given chat are learned: its last one, or every one of the assistant, each behind all
    that comes before it. Tokens of users, tools and systems are never learned."""
    shuffle: bool = True
    """Draw training prompts in a seeded random order, newly shuffled at each pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSettings:
    """How records become prompts, wherever that was set: in a run, a generation or an evaluation."""

    how: PromptSection
    section: str = ""
    """The section that holds these settings, with its dot; messages name them in full."""

    def key(self, name: str) -> str:
        """The full name of one of these settings."""
        return f"{self.section}{name}"

    def faults(self, sources: Mapping[str, PromptData | None]) -> list[Fault]:
        """What the template cannot express; `sources` are the data sets by the setting that names each."""
        if self.how.template == "chat":
            return []
        key, way_out = self.key("template"), f"set {self.key('template')}=chat"
        found = [
            Fault(
                f"{name}.{column}",
                getattr(source, column),
                f"needs a chat template, and {key} = {self.how.template}",
                f"{way_out}, or set {name}.{column} to null",
                also=(key,),
            )
            for name, source in sources.items()
            for column in ("messages", "system")
            if source is not None and getattr(source, column) is not None
        ]
        for name in ("system_prompt", "chat_template", "chat_template_kwargs"):
            if value := getattr(self.how, name):
                reason = f"has no place in {key} = {self.how.template}"
                found.append(Fault(self.key(name), value, reason, f"{way_out} or remove it", also=(key,)))
        return found


class TextConfig(Section):
    """Plain text: for the language-model term (D_PT of the paper), or all that is learned from."""

    path: str
    """A .txt file (one document), or any file, folder or hub data set as of data.train (each record is a
    document)."""
    split: str = "train"
    """Split of a folder or hub data set."""
    subset: str | None = None
    """Configuration of a hub data set that has several."""
    column: str = "text"
    """Column of everything but a .txt file."""
    limit: Count | None = None
    """Use only the first so many documents."""
    block_tokens: Annotated[int, Field(ge=2)] = 128
    """Tokens of one training block; documents are joined by the end-of-sequence token."""
    batch_size: Count | None = None
    """Blocks mixed into each optimiser step; null = as many as answers."""
    validation_blocks: Annotated[int, Field(ge=0)] = 0
    """Where only text is learned: number of evenly spread blocks held out; their loss chooses the best."""

"""The questions of a data set as it states them: what stands beside an answer that somebody else gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..actors.answer_parts import Question
from ..common.data_config import PromptData
from ..common.messages import Prompt
from .records import column_of, read_records


class Questions:
    """Rows of data.train, by the prompts that were made of them."""

    def __init__(self, source: PromptData):
        key, path = "data.train", source.path
        rows = read_records(path, source.split, source.subset, source.limit, key)
        self._chats = None
        if source.messages is not None:
            self._chats = column_of(rows, source.messages, f"{key}.messages", path)
            return
        self._instructions = column_of(rows, source.instruction, f"{key}.instruction", path)
        self._inputs = column_of(rows, source.input, f"{key}.input", path, may_lack="input")

    def of(self, prompts: Sequence[Prompt]) -> dict[str, Question]:
        """Prompt id -> its question, in the order of the prompts."""
        return {prompt.id: self._row(int(prompt.id.rpartition("/")[2])) for prompt in prompts}

    def _row(self, number: int) -> dict[str, Any]:
        if self._chats is not None:
            turns = [{"role": turn["role"], "content": turn["content"]} for turn in self._chats[number]]
            return {"messages": turns[:-1] if turns[-1]["role"] == "assistant" else turns}
        further = self._inputs[number]
        return {"instruction": self._instructions[number], "input": "" if further is None else str(further)}

"""The one measure of all contenders: a student's reverse KL from the teacher on held-out prompts, exact."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from ...actors.measurer import Measurer
from ...common.types import Passage

SAMPLES = 4
"""Answers to each held-out prompt."""
SEED = 11
BATCH_ROWS = 210
BATCH_TOKENS = 8192


class Exam:
    """Held-out prompts, and the teacher that a student's answers to them are compared with."""

    def __init__(self, teacher: Path, prompts: Sequence[str], max_new_tokens: int):
        self._tokenizer = AutoTokenizer.from_pretrained(teacher, padding_side="left")
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts for _ in range(SAMPLES)]
        rows = self._tokenizer.apply_chat_template(chats, add_generation_prompt=True)["input_ids"]
        self._rows = sorted(rows, key=len)
        self._teacher, self._max_new_tokens = _loaded(teacher), max_new_tokens
        self._measurer: Measurer | None = None

    def reverse_kl(self, student: Path) -> float:
        """KL(student || teacher) over the whole vocabulary, nats per token of the student's own answers.

        Every student draws with the same random numbers, so that students alike get answers alike.
        """
        model = _loaded(student)
        if self._measurer is None:
            self._measurer = Measurer(
                model, self._teacher, vocabulary=len(self._tokenizer), batch_tokens=BATCH_TOKENS
            )
        self._measurer.swap_model(model)
        torch.manual_seed(SEED)
        starts = range(0, len(self._rows), BATCH_ROWS)
        passages = [one for n in starts for one in self._answers(model, self._rows[n : n + BATCH_ROWS])]
        measured, _ = self._measurer.measure(passages)
        of_tokens = [one.reverse_kl for one in measured if one.reverse_kl is not None]
        return float(np.concatenate(of_tokens).mean(dtype=np.float64))

    @torch.inference_mode()
    def _answers(self, model: PreTrainedModel, prompts: list[list[int]]) -> list[Passage]:
        end, padding = self._tokenizer.eos_token_id, self._tokenizer.pad_token_id
        how = GenerationConfig(
            do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=self._max_new_tokens,
            eos_token_id=end, pad_token_id=padding,
        )  # fmt: skip
        padded = self._tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
        drawn = cast(Any, model).generate(**padded, generation_config=how)[:, padded["input_ids"].shape[1] :]
        found = []
        for prompt, answer in zip(prompts, drawn.numpy().astype(np.int32), strict=True):
            ends = np.flatnonzero(answer == end)
            found.append(
                Passage(
                    prompt_id="",
                    prompt_ids=np.array(prompt, np.int32),
                    answer_ids=answer[: ends[0] + 1] if len(ends) else answer,
                )
            )
        return found


def _loaded(folder: Path) -> PreTrainedModel:
    disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

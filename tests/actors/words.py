"""A tokenizer of a few words, and answers in them, for tests of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from minillm_ray.common.types import FinishReason, Rollout, WeightVersion
from transformers import PreTrainedTokenizerBase


class _Words:
    """Token ids are indices of words; 0 is the end-of-sequence token, anything else is refused."""

    def __init__(self, words: Sequence[str]):
        self._words = ["<eos>", *words]

    def decode(self, token_ids: Any, *, skip_special_tokens: bool) -> str:
        return " ".join(self._words[i] for i in token_ids if not (skip_special_tokens and i == 0))


def word_tokenizer(*words: str) -> PreTrainedTokenizerBase:
    """A tokenizer whose ids from 1 on are these words."""
    return cast(PreTrainedTokenizerBase, _Words(words))


def rollout(
    answer: list[int], prompt: str = "train/1", *, sample: int = 0, finish: FinishReason = "stop"
) -> Rollout:
    """An answer drawn by version 3 of the weights, log q = -1.5 and log p~ = -1 at each token."""
    return Rollout(
        prompt_id=prompt,
        prompt_ids=np.array([1, 2], np.int32),
        answer_ids=np.array(answer, np.int32),
        sample=sample,
        behaviour_logprobs=np.full(len(answer), -1.0, np.float32),
        student_logprobs=np.full(len(answer), -1.5, np.float32),
        mixed_teacher_logprobs=None,
        oldest=WeightVersion(3),
        newest=WeightVersion(3),
        finish=finish,
    )

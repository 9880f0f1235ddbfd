"""Draws tokens inside vLLM, and keeps what was known of each until the answers are done."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..common.arrays import array_of
from ..common.types import Floats, Ids
from .mixing import draw
from .mixture_model import TeacherMixedForCausalLM
from .vllm_compat import SamplerOutput


class MixtureSampler:
    """Takes the place of vLLM's sampler on the model runner.

    vLLM's own would draw from seeds of its own making, rank the vocabulary for log-probs of one
    distribution where three are asked for, and carry them home in Python objects, token by token.
    Here a step costs a few array operations whatever the number of sequences.
    """

    def __init__(self, model: TeacherMixedForCausalLM, request_ids: Callable[[], Sequence[str]]):
        """`request_ids` names the sequences of the step under way, row by row."""
        self._model = model
        self._request_ids = request_ids
        self._answers: dict[str, int] = {}
        self._numbers: npt.NDArray[np.float64] = np.empty((0, 0))
        self._lengths: npt.NDArray[np.intp] = np.empty(0, np.intp)
        self._steps: list[tuple[npt.NDArray[np.intp], Tensor, Tensor, Tensor | None]] = []
        self._states: torch.dtype | None = None
        self._given: Sequence[Ids] | None = None

    def begin(
        self,
        answers: dict[str, int],
        seeds: Sequence[int],
        max_tokens: int,
        states: torch.dtype | None,
        given: Sequence[Ids] | None = None,
    ) -> None:
        """Expect a batch: which answer each request is, and each answer's seed.

        `states`: keep the teacher's hidden states too, in this type. `given`: draw nothing, and read these
        answers, token by token, as if each had been drawn.
        """
        self._answers, self._states, self._given = answers, states, given
        self._numbers = np.stack([numbers(seed, max_tokens) for seed in seeds])
        self._lengths = np.zeros(len(seeds), np.intp)
        self._steps = []

    def __call__(self, logits: Tensor, sampling_metadata: Any, **_: Any) -> SamplerOutput:
        """One token for each row of what the model's `compute_logits` gave, p~ [N, V].

        Every row is a token that its answer keeps: prompts come whole, so none is drawn on the way, and
        a preempted answer continues where it was. `finish` lets the engine check it.
        """
        step, self._model.step = self._model.step, None
        assert step is not None, "the model runs before the sampler"
        hidden, self._model.teacher_hidden = self._model.teacher_hidden, None
        kept = hidden.to(self._states) if hidden is not None and self._states is not None else None
        which = np.array([self._answers[request] for request in self._request_ids()], np.intp)
        positions = self._lengths[which]
        self._lengths[which] += 1
        if self._given is None:
            drawn = draw(logits, torch.from_numpy(self._numbers[which, positions]))
        else:
            tokens = [
                self._given[answer][position] for answer, position in zip(which, positions, strict=True)
            ]
            drawn = torch.tensor(tokens, dtype=torch.int64, device=logits.device)
        self._steps.append((which, drawn, step.log_probs(drawn), kept))
        return SamplerOutput(sampled_token_ids=drawn.to(torch.int32)[:, None], logprobs_tensors=None)

    def finish(self) -> list[tuple[Ids, Floats, npt.NDArray[Any] | None]]:
        """Each answer's tokens [T], their log p~, log q and log p [3, T], and the teacher's states [T, H]."""
        which = np.concatenate([step[0] for step in self._steps])
        order = np.argsort(which, kind="stable")
        ids = torch.cat([step[1] for step in self._steps]).cpu().numpy()[order].astype(np.int32)
        log_probs = torch.cat([step[2] for step in self._steps]).cpu().numpy()[order]
        states = [step[3] for step in self._steps if step[3] is not None]
        hidden = array_of(torch.cat(states)) if states else None
        ends = np.cumsum(self._lengths)
        self._steps = []
        spans = [slice(end - length, end) for end, length in zip(ends, self._lengths, strict=True)]
        return [
            (ids[span].copy(), log_probs[span].T.copy(), None if hidden is None else hidden[order[span]])
            for span in spans
        ]


def answer_seed(seed: int, prompt_id: str, sample: int) -> int:
    """The seed of one answer, below 2^64; the same in every process and on every machine."""
    digest = hashlib.blake2b(f"{seed}\n{sample}\n{prompt_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def numbers(seed: int, count: int) -> npt.NDArray[np.float64]:
    """The uniform numbers of [0, 1) that an answer is drawn with, one per token."""
    return np.random.Generator(np.random.Philox(key=seed)).random(count)

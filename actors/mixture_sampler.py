"""Draws tokens inside vLLM and reports the three log-probs of each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.v1.outputs import LogprobsTensors, SamplerOutput

from .mixing import draw
from .mixture_model import TeacherMixedForCausalLM

COLUMNS = 3
"""log p~, log q and log p of the drawn token. vLLM carries them where a request with `logprobs=2` has the
drawn token's log-prob and those of the two best, so preemption and batching need no book-keeping of ours."""


class MixtureSampler:
    """Stands in for vLLM's sampler on the model runner.

    vLLM's own would sort the vocabulary for ranks that nobody reads, and its log-probs are those of
    one distribution where three are asked for. Each request draws from its own seeded generator.
    """

    def __init__(self, model: TeacherMixedForCausalLM):
        self._model = model

    def __call__(self, logits: Tensor, sampling_metadata: Any, **_: Any) -> SamplerOutput:
        """One token for each row of log p~ [N, V]."""
        rows = self._model.rows
        assert rows is not None, "the model runs before the sampler"
        drawn = draw(logits, self._uniforms(sampling_metadata.generators, len(logits), logits.device))
        self._model.rows = None
        ids = drawn.to(torch.int32)[:, None]
        log_probs = LogprobsTensors(ids.expand(-1, COLUMNS), rows.of(drawn), torch.zeros_like(drawn))
        return SamplerOutput(sampled_token_ids=ids, logprobs_tensors=log_probs)

    @staticmethod
    def _uniforms(generators: dict[int, torch.Generator], rows: int, device: torch.device) -> Tensor:
        numbers = torch.empty(rows, dtype=torch.float64, device=device)
        for row in range(rows):
            torch.rand((), generator=generators[row], dtype=torch.float64, device=device, out=numbers[row])
        return numbers

"""The output layer of a causal language model, as an object of its own.

The full-vocabulary losses see a model as hidden states and a head; a [tokens, vocabulary] tensor is theirs to
make, chunk by chunk. A head of a kind that is not known here is refused, never approximated: `check_head`
holds it against the model's own logits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import ModelError
from .onednn_linear import linear

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True, eq=False)
class Head:
    """logits = soft_cap * tanh(scale (hidden W^T + bias) / soft_cap), cut to the first `vocabulary` words.

    H = hidden size, V = words that the weight has, of which `vocabulary` <= V are in use.
    """

    weight: Tensor
    """[V, H]; the live parameter for a student, so that gradients reach it (under tied embeddings too)."""
    bias: Tensor | None = None
    """[V], or none."""
    scale: float = 1.0
    soft_cap: float | None = None
    vocabulary: int
    """Words that teacher and student share; rows beyond it are padding and get no probability."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits over the vocabulary: [..., H] to [..., vocabulary], in the weight's type."""
        bias = None if self.bias is None else self.bias[: self.vocabulary]
        raw = linear(hidden.to(self.weight.dtype), self.weight[: self.vocabulary], bias)
        raw = raw if self.scale == 1.0 else raw * self.scale
        return raw if self.soft_cap is None else torch.tanh(raw / self.soft_cap) * self.soft_cap

    def scaled_logits(self, hidden: Tensor, temperature: float, dtype: torch.dtype) -> Tensor:
        """Logits / temperature [N, vocabulary], a new tensor of this type; not differentiable."""
        factor = (self.scale if self.soft_cap is None else self.scale / self.soft_cap) / (
            temperature if self.soft_cap is None else 1.0
        )
        weight = self.weight.detach()[: self.vocabulary]
        bias = None if self.bias is None else self.bias.detach()[: self.vocabulary]
        hidden = hidden.detach().to(weight.dtype)
        if weight.dtype == dtype:  # scaling H columns is cheaper than scaling V
            hidden = hidden if factor == 1.0 else hidden * factor
            logits = linear(hidden, weight, None if bias is None else bias * factor)
        else:
            logits = linear(hidden, weight, bias).to(dtype)
            if factor != 1.0:
                logits.mul_(factor)
        return logits if self.soft_cap is None else logits.tanh_().mul_(self.soft_cap / temperature)

    def part(self, words: slice) -> Head:
        """The head of a run of words alone."""
        count = len(range(*words.indices(self.vocabulary)))
        bias = None if self.bias is None else self.bias[words]
        return replace(self, weight=self.weight[words], bias=bias, vocabulary=count)

    def frozen(self, dtype: torch.dtype | None = None) -> Head:
        """A detached copy of the rows in use, for a process that holds the head without the model."""

        def copied(tensor: Tensor) -> Tensor:
            return tensor.detach()[: self.vocabulary].to(dtype or tensor.dtype, copy=True)

        return replace(
            self, weight=copied(self.weight), bias=None if self.bias is None else copied(self.bias)
        )


def read_head(model: PreTrainedModel, vocabulary: int | None = None) -> Head:
    """The output layer of a causal language model from transformers, over its own live parameters.

    `vocabulary` cuts it to the words shared with another model; None keeps all rows. Reads what the config
    says of a factor on the logits (Cohere, Granite, Falcon-H1) and of a soft cap (Gemma). That nothing was
    missed is for `check_head` to say. Raises ModelError for an output layer that is not one linear map.
    """
    layer = model.get_output_embeddings()
    kind = type(model).__name__
    if not isinstance(layer, torch.nn.Linear):
        raise ModelError(
            f"{kind}: its output layer is {type(layer).__name__}, not one linear map; "
            "use a causal language model whose lm_head is torch.nn.Linear"
        )
    words = layer.out_features
    if vocabulary is not None and vocabulary > words:
        raise ModelError(
            f"{kind}: its head has {words} words, {vocabulary} are asked for; the shared vocabulary is the "
            "smaller head's or the tokenizer's, whichever is less"
        )
    return Head(
        weight=layer.weight,
        bias=layer.bias,
        scale=_logit_factor(model),
        soft_cap=getattr(model.config, "final_logit_softcapping", None),
        vocabulary=words if vocabulary is None else vocabulary,
    )


def _logit_factor(model: PreTrainedModel) -> float:
    """What the model multiplies its logits with, by the name that its family's config gives it."""
    config = model.config
    factor = 1.0
    for name in ("logit_scale", "lm_head_multiplier"):
        if isinstance(value := getattr(config, name, None), int | float):
            factor *= value
    if isinstance(divisor := getattr(config, "logits_scaling", None), int | float):
        factor /= divisor
    return factor


def final_hidden(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """The input of the model's output layer: ids [B, L] to [B, L, H]; differentiable, no cache, no logits."""
    return model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]


@torch.no_grad()
def check_head(model: PreTrainedModel, head: Head, tolerance: float | None = None) -> None:
    """Hold the head against the model's own logits on a few fixed tokens; ModelError if they differ.

    `tolerance` is relative to the largest logit; by default 1e-4, or 3e-2 where the model is in 16 bits. The
    model's parameters must be whole (not partitioned by ZeRO-3). Dropout is off meanwhile.
    """
    if tolerance is None:
        tolerance = 1e-4 if torch.finfo(head.weight.dtype).bits >= 32 else 3e-2
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, head.vocabulary, (2, 8), generator=generator).to(head.weight.device)
    training = model.training
    model.eval()
    try:
        expected = model(input_ids=ids, use_cache=False).logits[..., : head.vocabulary].float()
        hidden = final_hidden(model, ids)
        found = head.logits(hidden).float() if hidden.shape[-1] == head.weight.shape[1] else None
    finally:
        model.train(training)
    if not expected.isfinite().all():
        raise ModelError(
            f"{type(model).__name__}: its logits are not finite numbers on a few ordinary tokens; the weights"
            " are damaged, or 16 bits are too few for them (learner.dtype, teacher_server.dtype)"
        )
    if found is None:
        difference = float("inf")
    else:
        difference = ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6)).item()
    if not difference <= tolerance:  # a nan is a difference too
        raise ModelError(
            f"{type(model).__name__}: its logits are not those of its output layer "
            f"(relative difference {difference:.1e}, allowed {tolerance:.0e}); this kind of head is "
            "not known here and would give wrong losses. Use another family, or teach common/heads.py it"
        )

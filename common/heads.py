"""The output layer of a causal language model, as an object of its own.

The full-vocabulary losses see a model as hidden states and a head; a [tokens, vocabulary] tensor is theirs to
make, chunk by chunk. A head of a kind that is not known here is refused, never approximated: `check_head`
holds it against the model's own logits.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .errors import ModelError
from .packing import MOST_ROW, pack

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
        raw = torch.nn.functional.linear(hidden.to(self.weight.dtype), self.weight[: self.vocabulary], bias)
        raw = raw if self.scale == 1.0 else raw * self.scale
        return raw if self.soft_cap is None else torch.tanh(raw / self.soft_cap) * self.soft_cap

    def scaled_logits(self, hidden: Tensor, temperature: float, out: Tensor) -> Tensor:
        """Logits / temperature written into `out` [N, vocabulary], in its type; not differentiable."""
        factor = (self.scale if self.soft_cap is None else self.scale / self.soft_cap) / (
            temperature if self.soft_cap is None else 1.0
        )
        weight, bias = self.weight.detach()[: self.vocabulary], self.bias
        hidden = hidden.detach().to(weight.dtype)
        if weight.dtype == out.dtype:  # scaling H columns is cheaper than scaling V
            hidden = hidden if factor == 1.0 else hidden * factor
            if bias is None:
                torch.mm(hidden, weight.T, out=out)
            else:
                torch.addmm(bias.detach()[: self.vocabulary] * factor, hidden, weight.T, out=out)
        else:
            cut = None if bias is None else bias.detach()[: self.vocabulary]
            out.copy_(torch.nn.functional.linear(hidden, weight, cut))
            if factor != 1.0:
                out.mul_(factor)
        if self.soft_cap is not None:
            out.tanh_().mul_(self.soft_cap / temperature)
        return out

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


def final_hidden(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    places: Tensor | None = None,
    sees: Tensor | None = None,
) -> Tensor:
    """The input of the model's output layer: ids [B, L] to [B, L, H]; differentiable, no cache, no logits.

    `places` [B, L] and `sees` [B, L, L] are those of `packing.Packed`, for rows of several sequences.
    """
    more: dict[str, Tensor] = {} if places is None else {"position_ids": places}
    if sees is not None:
        hidden_from = torch.zeros(sees.shape, dtype=model.dtype, device=sees.device)
        attention_mask = hidden_from.masked_fill_(~sees, torch.finfo(model.dtype).min)[:, None]
    return model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **more)[0]


@torch.no_grad()
def longest_shared(model: PreTrainedModel, tolerance: float | None = None) -> int:
    """How long sequences may be for this model to read them in shared rows (see `packing`) as if alone.

    0 where it cannot: it is tried on a few tokens, since families differ in what they make of positions and
    masks. A window of attention bounds the length, as the mask of a shared row takes its place. Parameters
    must be whole, as for `check_head`; dropout is off meanwhile.
    """
    if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        return 0
    embedding: Any = model.get_input_embeddings()
    words: int = embedding.weight.shape[0]
    if tolerance is None:
        tolerance = 1e-4 if torch.finfo(embedding.weight.dtype).bits >= 32 else 3e-2
    ids = torch.randint(0, words, (2, 7), generator=torch.Generator().manual_seed(0))
    ids[1, :3] = ids[0, :3]
    packed = pack(list(ids.numpy().astype(np.int32)), together=7)
    arrays = packed.ids, packed.places, packed.sees
    row, places, sees = (torch.from_numpy(array).to(model.device) for array in arrays if array is not None)
    training = model.training
    model.eval()
    try:
        alone = final_hidden(model, ids.to(model.device)).flatten(0, 1).float()
        shared = final_hidden(model, row, places=places, sees=sees)[0].float()
    # A family with masks of another shape.
    except (TypeError, ValueError, LookupError, AttributeError, AssertionError, RuntimeError):
        return 0
    finally:
        model.train(training)
    slots = torch.from_numpy(np.concatenate(packed.slots)).to(model.device)
    apart = (shared[slots] - alone).norm(dim=-1)
    same = bool((apart <= tolerance * alone.norm(dim=-1)).all())
    return _window(model.config.get_text_config()) if same else 0


def _window(config: Any) -> int:
    """The longest row, or the shortest window that attention has, by the names that families give it."""
    if getattr(config, "window_size", None) is not None:  # GPT-Neo counts it in slots, whoever lies in them
        return 0
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min([MOST_ROW, *(window for window in windows if window)])


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
            " are damaged, or 16 bits are too few for them (learner.precision, scoring.precision)"
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

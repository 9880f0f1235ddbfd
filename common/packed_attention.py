"""A model that reads sequences out of one shared row (see `packing`) as if each had a row of its own.

All that works on tokens one by one needs nothing but their places. Attention gathers each sequence's queries,
keys and values and is the model's own again, causal and without a mask. It stands in transformers' registry,
between a model and the attention that the model had.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from . import transformers_compat
from .heads import final_hidden
from .packing import Packed, pack

if TYPE_CHECKING:
    from transformers import PreTrainedModel

UNBOUNDED = 1 << 30
OUT_OF_MEMORY = re.compile(r"(?i)out of memory|can(?:'t|not) allocate memory|alloc_failed")
"""What torch says in a plain RuntimeError where a CPU or a library of CUDA has no memory left."""
WRAPPED = ("sdpa", "eager")
"""What may stand behind ours: kinds of attention that read their mask as it comes."""


@dataclass(frozen=True, eq=False)
class Layout:
    """`packing.Shared` on a device."""

    position_ids: Tensor
    """[1, S]"""
    groups: tuple[Tensor, ...]
    """[n, l] each"""
    owners: Tensor
    """[S]"""

    @classmethod
    def of(cls, packed: Packed, device: torch.device) -> Layout | None:
        """None where each sequence has a row of its own."""
        if (shared := packed.shared) is None:
            return None
        return cls(
            torch.from_numpy(shared.position_ids)[None].to(device),
            tuple(torch.from_numpy(group).to(device) for group in shared.groups),
            torch.from_numpy(shared.owners).to(device),
        )


def read(model: PreTrainedModel, ids: Tensor, layout: Layout | None) -> Tensor:
    """The input of the model's output layer: ids [R, L] to [R, L, H]; differentiable, no cache, no logits.

    `layout` tells how ids [1, S] share a row; only for a model that `enable_packing` has said yes to.
    """
    if layout is None:
        return final_hidden(model, ids)
    # Models leave a mask of four dimensions as it is, and nothing reads this one.
    unread = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device)
    return model.base_model(
        input_ids=ids, attention_mask=unread, position_ids=layout.position_ids, use_cache=False, layout=layout
    )[0]


@torch.no_grad()
def enable_packing(model: PreTrainedModel, tolerance: float | None = None) -> int:
    """Let the model read shared rows; how long their sequences may be, 0 where it cannot and is as it was.

    It is tried on a few tokens, since families differ in what they make of positions and attention. No
    sequence may be longer than a window of attention, which would need a mask. Parameters must be whole, as
    for `heads.check_head`; dropout is off meanwhile.
    """
    config, before = model.config, transformers_compat.attention_kind(model.config)
    takes_places = "position_ids" in inspect.signature(model.base_model.forward).parameters
    if before not in (*WRAPPED, *map(_name, WRAPPED)) or not takes_places:
        return 0
    if before in WRAPPED:
        transformers_compat.set_attention_kind(config, _register(before))
    can = False
    try:
        can = _reads_as_if_alone(model, tolerance)
    finally:
        if not can:
            transformers_compat.set_attention_kind(config, before)
    return _window(config.get_text_config()) if can else 0


def _reads_as_if_alone(model: PreTrainedModel, tolerance: float | None) -> bool:
    embedding: Any = model.get_input_embeddings()
    words: int = embedding.weight.shape[0]
    if tolerance is None:
        tolerance = 1e-4 if torch.finfo(embedding.weight.dtype).bits >= 32 else 3e-2
    ids = torch.randint(0, words, (3, 7), generator=torch.Generator().manual_seed(0))
    ids[1:, :3] = ids[0, :3]
    one, other, third = ids.numpy().astype(np.int32)
    packed = pack([one, other, third[:5]], max_packed_len=7)
    layout = Layout.of(packed, model.device)
    assert layout is not None
    training = model.training
    model.eval()
    try:
        alone = final_hidden(model, ids.to(model.device)).float()
        shared = read(model, torch.from_numpy(packed.ids).to(model.device), layout)[0].float()
    # A family of another shape: attention of its own, or arguments that do not reach it.
    except (TypeError, ValueError, LookupError, AttributeError, AssertionError, RuntimeError) as error:
        if _is_of_the_machine(error):
            raise
        return False
    finally:
        model.train(training)
    for own, slots in zip(alone, packed.slots, strict=True):
        wanted = own[: len(slots)]
        distance = (shared[torch.from_numpy(slots).to(shared.device)] - wanted).norm(dim=-1)
        if not bool((distance <= tolerance * wanted.norm(dim=-1)).all()):
            return False
    return True


def _is_of_the_machine(error: Exception) -> bool:
    """Whether memory or a device failed, which says nothing about a family: it would read slowly for ever,
    and most likely fail again at its first batch."""
    kinds = (torch.OutOfMemoryError, torch.AcceleratorError)
    return isinstance(error, kinds) or OUT_OF_MEMORY.search(str(error)) is not None


def _window(config: Any) -> int:
    """The shortest window that attention has, by the names that families give it."""
    if getattr(config, "window_size", None) is not None:  # GPT-Neo, whose layers do not tell attention of it
        return 0
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min([UNBOUNDED, *(window for window in windows if window)])


def _name(attention: str) -> str:
    return f"shared_{attention}"


def _register(attention: str) -> str:
    name = _name(attention)
    transformers_compat.register_attention(name, partial(_attend, attention), attention)
    return name


def _attend(
    attention: str,
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *rest: Any,
    layout: Layout | None = None,
    **more: Any,
) -> tuple[Tensor, Tensor | None]:
    """The model's own attention, of the whole row or of one group of sequences at a time.

    query [1, heads, S, D], key and value alike; gives [1, S, heads, D].
    """
    own = transformers_compat.own_attention(attention, module)
    if layout is None:
        return own(module, query, key, value, attention_mask, *rest, **more)
    slots = [states[0].transpose(0, 1) for states in (query, key, value)]
    parts = []
    for group in layout.groups:
        # index_select, since the gradient of indexing adds up one number at a time
        gathered = [
            states.index_select(0, group.flatten()).unflatten(0, group.shape).transpose(1, 2)
            for states in slots
        ]
        mask = _causal(group.shape[1], query) if attention == "eager" else None
        found = own(module, *gathered, mask, *rest, **more)[0]
        parts.append(found.flatten(0, 1))
    return torch.cat(parts).index_select(0, layout.owners)[None], None


def _causal(size: int, like: Tensor) -> Tensor:
    """[1, 1, size, size] to add to scores."""
    lowest = torch.full((size, size), torch.finfo(like.dtype).min, dtype=like.dtype, device=like.device)
    return lowest.triu(1)[None, None]

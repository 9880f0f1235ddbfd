"""All of torch that its documentation does not promise, under names of our own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import compat

LIBRARY = "torch"

_ONEDNN_LINEAR = "torch.ops.mkldnn._linear_pointwise"
_ONEDNN_ENABLED = "torch.backends.mkldnn.enabled"
_TAKES_SCALE = "torch.optim.Optimizer._step_supports_amp_scaling"

ON_INSTANCES: tuple[str, ...] = (_TAKES_SCALE,)
"""What of `REQUIRED` only objects have: each is looked for on the object, when it is there."""
REQUIRED: tuple[str, ...] = (_ONEDNN_ENABLED, *ON_INSTANCES)
OPTIONAL: tuple[str, ...] = (_ONEDNN_LINEAR,)
"""What a build of torch may lack; torch's plain operations then do the same."""


def onednn_linear() -> Callable[[Tensor, Tensor, Tensor | None], Tensor] | None:
    """x W^T + b in float32 by oneDNN, for tensors on CPUs; None where this torch has no such operation."""
    if not torch.backends.mkldnn.is_available() or not compat.available(LIBRARY, _ONEDNN_LINEAR):
        return None
    operation = compat.resolve(LIBRARY, _ONEDNN_LINEAR)
    return lambda x, weight, bias: operation(x, weight, bias, "none", [], "")


def onednn_enabled() -> bool:
    """Whether torch may use oneDNN at present."""
    return compat.member(LIBRARY, torch.backends.mkldnn, _ONEDNN_ENABLED)


def divide_gradients(optimizer: torch.optim.Optimizer, divisor: Tensor | None) -> None:
    """Have a fused optimiser divide gradients as its next steps read them; None: leave them as they are.

    A pass over all gradients less than to scale them before. An optimiser that is not fused would ignore it,
    so that raises IncompatibleLibrary.
    """
    compat.member(LIBRARY, optimizer, _TAKES_SCALE)
    optimizer.grad_scale = divisor  # pyright: ignore[reportAttributeAccessIssue]

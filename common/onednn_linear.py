"""Products with a matrix of weights, by whichever library is quickest at them here: values and gradients.

torch leaves products of float32 on CPUs to its BLAS, while it carries oneDNN, too, for its compiler's use.
For the long, narrow products of a transformer the latter is 5 to 25 % quicker (docs/performance.md).
`torch.backends.mkldnn.enabled = False` brings torch's own back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from . import torch_compat

_ONEDNN = torch_compat.onednn_linear()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b: [..., K], [N, K] and [N] to [..., N]; torch's own but for rounding. Differentiable once."""
    if not _takes(x, weight):
        return nn.functional.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return _Linear.apply(x, weight, bias)
    return _product(x, weight, bias)


def use_in(model: nn.Module) -> None:
    """Let every plain nn.Linear of the model multiply by `linear`; its parameters stay as they are."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear


class Linear(nn.Linear):
    """nn.Linear by the product above."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., K] to [..., N]."""
        return linear(input, self.weight, self.bias)


def _takes(x: Tensor, weight: Tensor) -> bool:
    return (
        _ONEDNN is not None
        and torch_compat.onednn_enabled()
        and x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and weight.numel() > 0
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    assert _ONEDNN is not None
    return _ONEDNN(x, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        rows = slope.reshape(-1, len(weight))
        # oneDNN is no quicker at the gradient of the weights.
        return (
            _product(slope, weight.T) if ctx.needs_input_grad[0] else None,
            rows.T @ x.reshape(len(rows), -1) if ctx.needs_input_grad[1] else None,
            rows.sum(0) if ctx.needs_input_grad[2] else None,
        )

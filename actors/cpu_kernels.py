"""RMSNorm in one pass on CPUs: vLLM has the kernels for them, but offers these to GPUs alone.

They are entered into vLLM's own table of implementations, which an engine's settings choose from; what they
cannot take falls back to vLLM's plain way.
"""

from __future__ import annotations

import torch
from torch import Tensor
from vllm import ir
from vllm.platforms import current_platform

PROVIDER = "cpu_c"
"""Name in that table."""
OPERATIONS = ("rms_norm", "fused_add_rms_norm")


def op_priority() -> dict[str, list[str]]:
    """What `EngineArgs.ir_op_priority` takes; nothing where this vLLM was built without the kernels."""
    current_platform.import_kernels()
    return {name: [PROVIDER, "native"] for name in OPERATIONS if hasattr(torch.ops._C, name)}


def _takes(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> bool:
    return variance_size is None and weight is not None and weight.dtype == x.dtype and x.is_contiguous()


def _takes_sum(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> bool:
    return _takes(x, weight, epsilon, variance_size) and x_residual.is_contiguous()


@ir.ops.rms_norm.register_impl(PROVIDER, supports_args=_takes)
def rms_norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
    """x / sqrt(mean of x^2 + epsilon) * weight over the last dimension."""
    out = torch.empty_like(x)
    torch.ops._C.rms_norm(out, x, weight, epsilon)
    return out


@ir.ops.fused_add_rms_norm.register_impl(PROVIDER, supports_args=_takes_sum, inplace=True)
def fused_add_rms_norm(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """(the norm of x + x_residual, their sum), in place of both."""
    torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual

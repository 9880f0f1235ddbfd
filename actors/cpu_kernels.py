"""RMSNorm in one pass on CPUs: vLLM has the kernels for them, but offers these to GPUs alone.

They are entered into vLLM's own table of implementations, which an engine's settings choose from; what they
cannot take falls back to vLLM's plain way.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from . import vllm_compat

PROVIDER = "cpu_c"
"""Name in that table."""
OPERATIONS = ("rms_norm", "fused_add_rms_norm")


def op_priority() -> dict[str, list[str]]:
    """What `EngineArgs.ir_op_priority` takes; nothing where this vLLM was built without the kernels."""
    return {name: [PROVIDER, "native"] for name in vllm_compat.cpu_kernels(OPERATIONS)}


@functools.cache
def rounds_to_nearest() -> bool:
    """Whether the kernels round bfloat16 as torch does; vLLM's build for AVX2 cuts the last bits off."""
    total, part = (
        torch.ones(1, 32, dtype=torch.bfloat16),
        torch.full((1, 32), 1.5 * 2**-8, dtype=torch.bfloat16),
    )
    wanted = total + part
    vllm_compat.cpu_kernel("fused_add_rms_norm")(total, part, torch.ones(32, dtype=torch.bfloat16), 1e-5)
    return torch.equal(part, wanted)


def _takes(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> bool:
    plain = variance_size is None and weight is not None and weight.dtype == x.dtype and x.is_contiguous()
    return plain and (x.dtype == torch.float32 or rounds_to_nearest())


def _takes_sum(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> bool:
    return _takes(x, weight, epsilon, variance_size) and x_residual.is_contiguous()


@vllm_compat.register_operation("rms_norm", PROVIDER, _takes)
def rms_norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
    """x / sqrt(mean of x^2 + epsilon) * weight over the last dimension."""
    out = torch.empty_like(x)
    vllm_compat.cpu_kernel("rms_norm")(out, x, weight, epsilon)
    return out


@vllm_compat.register_operation("fused_add_rms_norm", PROVIDER, _takes_sum, inplace=True)
def fused_add_rms_norm(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """(the norm of x + x_residual, their sum), in place of both."""
    vllm_compat.cpu_kernel("fused_add_rms_norm")(x, x_residual, weight, epsilon)
    return x, x_residual

"""What RMSNorm does where vLLM is at home; run in its process."""

from __future__ import annotations

import torch


def errors() -> dict[str, float]:
    """Largest distances to the norm in float64, over shapes and types, in units of the type's precision."""
    from minillm_ray.actors.cpu_kernels import PROVIDER, rounds_to_nearest
    from vllm import ir

    found: dict[str, float] = {}
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        for shape in ((1, 64), (17, 96), (5, 3, 32)):
            x, residual = 3 * torch.randn(2, *shape, dtype=dtype)
            weight = torch.randn(shape[-1], dtype=dtype)
            total = x + residual
            for provider in (PROVIDER, "native"):
                if not ir.ops.rms_norm.impls[provider].supports_args(x, weight, 1e-5):
                    assert (provider, dtype) == (PROVIDER, torch.bfloat16), "all else the kernels take"
                    assert not rounds_to_nearest()
                    continue
                alone = ir.ops.rms_norm.impls[provider].impl_fn(x, weight, 1e-5)
                normed, summed = ir.ops.fused_add_rms_norm.impls[provider].impl_fn(
                    x.clone(), residual.clone(), weight, 1e-5
                )
                assert torch.equal(summed, total)
                for got, given in ((alone, x), (normed, total)):
                    wide = given.double()
                    want = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
                    off = ((got.double() - want).abs() / want.abs().clamp(min=1)).max().item()
                    found[provider] = max(found.get(provider, 0.0), off / torch.finfo(dtype).eps)
    return found


def providers() -> list[str]:
    """Who normalises what: contiguous rows, a strided view, weights of another type, a part of the width."""
    from vllm import ir

    x, weight = torch.randn(4, 8), torch.randn(8)
    wide = torch.randn(4, 16)[:, :8]
    cases = ((x, weight, 1e-5), (wide, weight, 1e-5), (x, weight.bfloat16(), 1e-5), (x, None, 1e-5))
    chosen = [ir.ops.rms_norm.dispatch(*case).provider for case in cases]
    return [*chosen, ir.ops.rms_norm.dispatch(x, weight, 1e-5, 4).provider]

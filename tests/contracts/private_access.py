"""Finds internals of other libraries that are used outside the compat modules."""

from __future__ import annotations

import ast
from collections.abc import Iterator

COMPAT = {
    "actors/vllm_compat.py",
    "learner/deepspeed_compat.py",
    "common/transformers_compat.py",
    "common/torch_compat.py",
    "deploy/runtime/ray_compat.py",
}

INTERNAL_MODULES = (
    "vllm.distributed",
    "vllm.ir",
    "vllm.model_executor.layers",
    "vllm.model_executor.model_loader",
    "vllm.model_executor.models.utils",
    "vllm.v1",
    "deepspeed.ops",
    "deepspeed.runtime",
    "transformers.integrations",
    "transformers.masking_utils",
    "transformers.modeling_utils",
    "transformers.models",
    "torch._",
    "ray._",
    "ray.actor",
)
"""Beginnings of modules that documentation does not promise."""

INTERNAL_ATTRIBUTES = {
    # vLLM
    "allow_patterns_overrides",
    "cpu_linear",
    "driver_worker",
    "input_batch",
    "input_size_per_partition",
    "load_numel_total",
    "model_executor",
    "model_runner",
    "query_start_loc",
    "quant_method",
    "register_impl",
    "secondary_weights",
    "token_ids_cpu",
    # DeepSpeed
    "GatheredParameters",
    "ds_shape",
    "enable_backward_allreduce",
    "get_global_grad_norm",
    "refresh_fp32_params",
    "register_external_parameter",
    "was_step_applied",
    # transformers
    "ALL_ATTENTION_FUNCTIONS",
    "ALL_MASK_ATTENTION_FUNCTIONS",
    "MODEL_FOR_CAUSAL_LM_MAPPING",
    "eager_attention_forward",
    # torch
    "grad_scale",
    # Ray
    "__compatible_ops__",
    "__ray_call__",
}
"""Names that only the libraries' insides have."""

OURS = {"self", "cls"}
NAMED_TUPLES = {"_asdict", "_replace", "_fields"}


def faults(path: str, source: str) -> list[str]:
    """A line for each use of an internal in a shipped file; none for those in a compat module."""
    if path in COMPAT:
        return []
    return [f"{path}:{line}: {what} belongs in a compat module" for line, what in _uses(ast.parse(source))]


def _uses(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if _internal_module(alias.name))
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ((node.lineno, name) for name in names if _internal_module(name))
        elif isinstance(node, ast.ImportFrom):
            ends = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from ((node.lineno, "common.compat") for end in ends if end == "compat")
        elif isinstance(node, ast.Attribute) and _internal_attribute(node):
            yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            asked = node.args[1].value if _asks_by_name(node) else None  # pyright: ignore[reportAttributeAccessIssue]
            if isinstance(asked, str) and (_private(asked) or asked in INTERNAL_ATTRIBUTES):
                yield node.lineno, ast.unparse(node)


def _internal_module(name: str) -> bool:
    return name.startswith(INTERNAL_MODULES)


def _internal_attribute(node: ast.Attribute) -> bool:
    """Any private attribute of what is not of this class, and names known as other libraries' insides."""
    ours = isinstance(node.value, ast.Name) and node.value.id in OURS
    return not ours and (_private(node.attr) or node.attr in INTERNAL_ATTRIBUTES)


def _private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name not in NAMED_TUPLES


def _asks_by_name(node: ast.Call) -> bool:
    """Whether it is getattr(x, "name") or one of its kin."""
    kin = isinstance(node.func, ast.Name) and node.func.id in {"getattr", "hasattr", "setattr", "delattr"}
    return kin and len(node.args) > 1 and isinstance(node.args[1], ast.Constant)

"""All of DeepSpeed that its documentation does not promise, under names of our own.

The environment must be settled before DeepSpeed is imported, so importing this module does not import it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from ..common import compat

if TYPE_CHECKING:
    from torch import Tensor, nn

LIBRARY = "deepspeed"

_ENGINE = "deepspeed.runtime.engine.DeepSpeedEngine"
_STAGES_1_2 = "deepspeed.runtime.zero.stage_1_and_2.DeepSpeedZeroOptimizer"
_STAGE_3 = "deepspeed.runtime.zero.stage3.DeepSpeedZeroOptimizer_Stage3"
_BFLOAT16 = "deepspeed.runtime.bf16_optimizer.BF16_Optimizer"
_KERNELS = "deepspeed.ops.__compatible_ops__"
_WHOLE_SHAPE = "deepspeed.runtime.zero.partition_parameters.Init.ds_shape"  # which gives it to parameters
_ALLREDUCE = f"{_ENGINE}.enable_backward_allreduce"

ON_INSTANCES: tuple[str, ...] = (_ALLREDUCE, _WHOLE_SHAPE)
"""What of `REQUIRED` only objects have: each is looked for on the object, when it is there."""
REQUIRED: tuple[str, ...] = (
    _KERNELS,
    "deepspeed.zero.GatheredParameters",
    "deepspeed.zero.register_external_parameter",
    f"{_ENGINE}.get_global_grad_norm",
    f"{_ENGINE}.was_step_applied",
    # Settings that DeepSpeed would ignore if it did not know them: each has a method that reads it.
    f"{_ENGINE}.managed_gradient_accumulation",
    f"{_ENGINE}.zero_allow_untested_optimizer",
    f"{_ENGINE}.zero_force_ds_cpu_optimizer",
    f"{_STAGES_1_2}.refresh_fp32_params",
    f"{_STAGE_3}.refresh_fp32_params",
    f"{_BFLOAT16}.refresh_fp32_params",
    *ON_INSTANCES,
)


def check() -> None:
    """Raises IncompatibleLibrary with all of `REQUIRED` that this DeepSpeed lacks."""
    compat.check(LIBRARY, REQUIRED, ON_INSTANCES)


def do_without_kernel(name: str) -> None:
    """Have DeepSpeed not build one of its kernels, which it would compile at run time."""
    compat.resolve(LIBRARY, _KERNELS)[name] = False


def keep_gradients_local(engine: Any) -> None:
    """Leave each rank's gradients as they are, for a world in which there is nobody to add to."""
    compat.member(LIBRARY, engine, _ALLREDUCE)
    engine.enable_backward_allreduce = False


def gradient_norm(engine: Any) -> float:
    """The norm before clipping of the step that was just taken; infinite if none was taken."""
    norm = engine.get_global_grad_norm() if engine.was_step_applied() else None
    return float("inf") if norm is None else float(norm)


def take_over_weights(engine: Any) -> None:
    """Have ZeRO copy the weights, which were written to, into its own copies of them."""
    engine.optimizer.refresh_fp32_params()


def share_parameter(module: nn.Module, parameter: Tensor) -> None:
    """At stage 3: gather a parameter for a module that uses it but does not own it."""
    compat.resolve(LIBRARY, "deepspeed.zero.register_external_parameter")(module, parameter)


def gathered(parameters: Sequence[nn.Parameter], *, write: bool) -> AbstractContextManager[Any]:
    """At stage 3: these parameters whole; with `write`, rank 0's are everybody's afterwards."""
    gather = compat.resolve(LIBRARY, "deepspeed.zero.GatheredParameters")
    return gather(list(parameters), modifier_rank=0 if write else None)


def whole_shape(parameter: nn.Parameter, stage: int) -> tuple[int, ...]:
    """The shape of a parameter, which at stage 3 has one of nothing while it lies in pieces."""
    return tuple(compat.member(LIBRARY, parameter, _WHOLE_SHAPE) if stage == 3 else parameter.shape)

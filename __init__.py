"""On-policy distillation of large language models on a Ray cluster (the MiniLLM method).

    import minillm_ray as mr

    result = mr.train("run.yaml")

The names below are loaded when they are first asked for: the import itself costs nothing.
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False  # as in typing, whose import would be the dearest part of this one
if TYPE_CHECKING:
    from .common.config.eval import EvalConfig
    from .common.config.run import RunConfig
    from .deploy.api import check, compare, evaluate, generate, resume, sft, train
    from .deploy.training.callbacks import STOP, Callback, TrainState

_WHERE = {
    "RunConfig": ".common.config.run",
    "EvalConfig": ".common.config.eval",
    **dict.fromkeys(("train", "sft", "resume", "generate", "evaluate", "compare", "check"), ".deploy.api"),
    **dict.fromkeys(("STOP", "Callback", "TrainState"), ".deploy.training.callbacks"),
}
"""Public name -> the module that has it."""

__all__ = [
    "STOP",
    "Callback",
    "EvalConfig",
    "RunConfig",
    "TrainState",
    "check",
    "compare",
    "evaluate",
    "generate",
    "resume",
    "sft",
    "train",
]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = globals()[name] = getattr(import_module(_WHERE[name], __name__), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

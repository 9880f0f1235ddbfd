"""The settings of runs, evaluations and generations, as closed trees that check themselves."""

from .data import DataConfig, PromptData, PromptSettings, TextConfig
from .eval import EvalConfig, EvalData, EvalModel
from .generate import GenerateConfig
from .objective import ObjectiveConfig
from .run import (
    ClusterConfig,
    EngineConfig,
    LearnerConfig,
    ModelConfig,
    OptimizerConfig,
    RolloutConfig,
    RunConfig,
    TeacherServerConfig,
    ValidationConfig,
)

__all__ = [
    "ClusterConfig",
    "DataConfig",
    "EngineConfig",
    "EvalConfig",
    "EvalData",
    "EvalModel",
    "GenerateConfig",
    "LearnerConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "PromptData",
    "PromptSettings",
    "RolloutConfig",
    "RunConfig",
    "TeacherServerConfig",
    "TextConfig",
    "ValidationConfig",
]

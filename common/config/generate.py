"""What a generation is: which model answers which questions, and how its answers are drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ..errors import Fault
from .base import Count, Section
from .data import PromptData, PromptSection, PromptSettings
from .run import ClusterConfig, EngineConfig, ModelConfig, VerifyConfig

Author = Literal["teacher", "student"]
"""Which of a run file's models answers."""


class GenerateData(PromptSection):
    """The questions, and how they become prompts; settings as in the section of a run."""

    train: PromptData


class GenerateEngine(EngineConfig):
    """How answers are drawn; settings as in the section `rollout` of a run."""

    num_generations: Count = 1
    """Answers to each prompt."""


class GenerateConfig(Section):
    """All that a generation takes from a run file, under the names that it has there."""

    by: Author
    """What the run file calls the model that answers."""
    model: ModelConfig
    keep_cut: bool = False
    """Whether answers that were cut at rollout.max_new_tokens are kept."""
    data: GenerateData
    rollout: GenerateEngine
    verify: VerifyConfig = VerifyConfig()
    cluster: ClusterConfig
    seed: Annotated[int, Field(ge=0)]
    plugins: tuple[str, ...] = ()
    """Python modules that offer data readers."""
    output_dir: Path
    """Folder of answers.jsonl."""

    @property
    def prompts(self) -> PromptSettings:
        """How records become prompts."""
        return PromptSettings(how=self.data, section="data.")

    @property
    def max_tokens(self) -> int:
        """Most tokens of a prompt and its answer."""
        return self.data.max_prompt_tokens + self.rollout.max_new_tokens

    def resolved(self) -> GenerateConfig:
        """The same generation with an absolute folder."""
        return self.model_copy(update={"output_dir": self.output_dir.expanduser().resolve()})

    def faults(self) -> list[Fault]:
        """What is wrong between settings, each with key, value and way out."""
        return self.prompts.faults({"data.train": self.data.train})

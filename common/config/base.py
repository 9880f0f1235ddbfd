"""What every tree of settings is made of: closed sections, and numbers with bounds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of the configuration tree: immutable, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Dtype = Literal["float32", "bfloat16", "float16"]

METRICS_SINKS = ("tensorboard", "ray")
"""Where metrics can go beside metrics.jsonl without a plugin."""

"""Engine, scorer and learner say of a family what a plain forward of transformers says.

Student and teacher are of one family and differ in width, heads, layers, windows, rotary base and experts;
then the teacher stands beside a LLaMA. More families: `python -m minillm_ray.benchmarks.families`.
"""

from __future__ import annotations

from typing import Any

import pytest
from minillm_ray.tests.actors.engines import EngineProcess
from minillm_ray.tests.family_gaps import COLUMNS, Measured
from minillm_ray.tests.family_models import PROMISED

pytestmark = pytest.mark.vllm

QUICK = ("mistral", "gemma2", "qwen3_moe", "smollm3")
"""A window, a cap on scores, experts, and a family that vLLM runs by transformers' own class."""
ROWS_OF_THEIR_OWN = {"gptj", "stablelm", "falcon"}
"""Families whose attention cannot be reached, so that none share rows."""
REST = [pytest.param(name, marks=pytest.mark.slow) for name in PROMISED if name not in QUICK]


@pytest.mark.parametrize("family", [*QUICK, *REST])
def test_every_part_says_what_transformers_says(engines: EngineProcess, tmp_path, family: str):
    found: dict[str, Any] = {}
    Measured(engines).measure(family, tmp_path, found.update)
    assert found.keys() == set(COLUMNS)
    assert (found.pop("packed") is None) == (family in ROWS_OF_THEIR_OWN)
    assert {part: gap for part, gap in found.items() if not (isinstance(gap, float) and gap < 1e-4)} == {}

"""Engines and models that several tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from minillm_ray.tests.actors.engines import EngineProcess, Pair
from minillm_ray.tests.tiny_models import tiny_model


@pytest.fixture(scope="session")
def engines() -> Iterator[EngineProcess]:
    """One process for vLLM engines, one engine at a time."""
    process = EngineProcess()
    yield process
    process.close()


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A small student and a wider, deeper teacher whose head has spare rows. No test updates them."""
    folder: Path = tmp_path_factory.mktemp("pair")
    return Pair(
        tiny_model("llama", folder / "student", seed=1),
        tiny_model("llama", folder / "teacher", seed=2, width=96, layers=3, tied=False, padding=16),
    )

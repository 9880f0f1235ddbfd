"""vLLM's RMSNorm kernels, where engines on a CPU use them, are its plain RMSNorm."""

from __future__ import annotations

import pytest
from minillm_ray.tests.actors import norms
from minillm_ray.tests.actors.engines import EngineProcess, Pair

pytestmark = pytest.mark.vllm


def test_the_kernels_are_as_exact_as_the_plain_norm(engines: EngineProcess, pair: Pair) -> None:
    found = engines.use(pair).run(norms.errors)
    assert found.keys() == {"cpu_c", "native"}
    assert found["cpu_c"] <= max(2.0, found["native"])


def test_an_engine_uses_them_for_what_they_can_take(engines: EngineProcess, pair: Pair) -> None:
    assert engines.use(pair).run(norms.providers) == ["cpu_c", "native", "native", "native", "native"]

"""Ranks that many tests share, and one scene for them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from minillm_ray.tests.learner.scenes import Scene, make_scene
from minillm_ray.tests.learner.worlds import World


@pytest.fixture(scope="session")
def worlds(ray_cluster: None) -> Iterator[dict[int, World]]:
    """Learner processes: one by itself, and two that have met."""
    sizes = {1: World(1), 2: World(2)}
    yield sizes
    for world in sizes.values():
        world.end()


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """A tiny LLaMA, its teacher, and their answers."""
    return make_scene(tmp_path_factory.mktemp("scene"))

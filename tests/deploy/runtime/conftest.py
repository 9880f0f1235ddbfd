"""What the tests of the learner share, for those of its group of ranks."""

from minillm_ray.tests.learner.conftest import scene, worlds

__all__ = ["scene", "worlds"]

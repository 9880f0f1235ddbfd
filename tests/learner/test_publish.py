"""Weights on their way out of the learner."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from minillm_ray.learner.publish import plan_buckets
from minillm_ray.tests.learner.scenes import Scene, make_scene, model_of, run_config
from minillm_ray.tests.learner.worlds import World, published


@given(st.lists(st.integers(1, 400), min_size=1, max_size=30), st.integers(64, 3000))
def test_buckets_keep_to_their_size_unless_one_parameter_exceeds_it(sizes: list[int], most: int) -> None:
    shapes = {f"p{n}": (size,) for n, size in enumerate(sizes)}
    plan = plan_buckets(shapes, most, "float32")
    assert [(form.name, form.shape) for forms in plan for form in forms] == list(shapes.items())
    assert all(sum(form.num_bytes for form in forms) <= most or len(forms) == 1 for forms in plan)
    first_of_next = [forms[0].num_bytes for forms in plan[1:]]
    for forms, following in zip(plan, first_of_next, strict=False):
        assert sum(form.num_bytes for form in forms) + following > most  # none is cut too early


@pytest.mark.ray
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_buckets_hold_every_parameter_as_it_is_once(
    worlds: dict[int, World], scene: Scene, stage: int
) -> None:
    config = run_config(scene, ranks=2, zero_stage=stage, bucket_mib=24)
    (buckets, weights), (nothing, _) = worlds[2].run(published, config, scene, "float32")
    assert nothing is None
    assert len(buckets) > 1
    assert all(num_bytes <= 24 << 10 or len(tensors) == 1 for num_bytes, tensors in buckets)
    found = {name: array for _, tensors in buckets for name, array in tensors.items()}
    names = [name for name, _ in model_of(scene.student).named_parameters()]
    assert list(found) == names
    assert "lm_head.weight" not in found  # tied to the embedding
    for name in names:
        assert np.array_equal(found[name], weights[name])


@pytest.mark.ray
def test_an_untied_head_is_published_and_numbers_can_be_halved(
    worlds: dict[int, World], tmp_path_factory: pytest.TempPathFactory
) -> None:
    scene = make_scene(tmp_path_factory.mktemp("untied"), tied=False)
    for dtype in ("bfloat16", "float16"):
        (buckets, weights), _ = worlds[2].run(
            published, run_config(scene, ranks=2, zero_stage=3), scene, dtype
        )
        found = {name: array for _, tensors in buckets for name, array in tensors.items()}
        assert "lm_head.weight" in found
        for name, array in found.items():
            want = torch.tensor(weights[name]).to(getattr(torch, dtype))
            bits = torch.tensor(array)
            assert torch.equal(bits.view(torch.bfloat16) if dtype == "bfloat16" else bits, want)

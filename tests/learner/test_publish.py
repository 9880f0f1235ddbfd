"""Weights on their way out of the learner."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from minillm_ray.common.arrays import bits_of
from minillm_ray.common.weights import TensorForm, WeightBucket
from minillm_ray.learner.publish import joined, plan_buckets
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


@given(st.lists(st.tuples(st.lists(st.integers(1, 4), max_size=3), st.booleans()), min_size=1, max_size=9))
def test_what_lies_back_to_back_is_one_array_and_comes_apart_again(
    parts: list[tuple[list[int], bool]],
) -> None:
    room = torch.arange(1000.0)
    tensors, slot = [], 0
    for shape, gap in parts:  # a gap in front of some
        slot += 5 * gap
        size = int(np.prod(shape))
        tensors.append(room[slot : slot + size].view(shape))
        slot += size
    merged = joined(tensors)
    assert len(merged) == 1 + sum(gap for _, gap in parts[1:])
    assert all(flat.untyped_storage().data_ptr() == room.data_ptr() for flat in merged)
    arrays = [bits_of(flat) for flat in merged]
    forms = tuple(TensorForm(name="p", shape=tuple(t.shape), dtype="float32") for t in tensors)
    bucket = WeightBucket(ref=None, tensors=forms, checksum=0)
    views = bucket.views(arrays)
    assert views is not None
    for view, tensor in zip(views, tensors, strict=True):
        assert view.shape == tuple(tensor.shape)
        assert np.shares_memory(view, room.numpy())
        assert np.array_equal(view, tensor.numpy())
    for wrong in (arrays[:-1], [*arrays, arrays[0]], [a.astype(np.float16) for a in arrays], [arrays[0][1:]]):
        assert bucket.views(wrong) is None


def test_what_lies_in_other_memory_or_the_other_way_round_is_not_joined() -> None:
    room, other = torch.arange(8.0), torch.arange(8.0)
    assert len(joined([room[:4], other[4:]])) == 2
    assert len(joined([room[4:], room[:4]])) == 2
    crosswise = joined([torch.arange(6.0).view(2, 3).T])
    assert [flat.tolist() for flat in crosswise] == [[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]]


@pytest.mark.ray
def test_a_bucket_of_a_rank_by_itself_is_one_array(worlds: dict[int, World], scene: Scene) -> None:
    ((buckets, _),) = worlds[1].run(published, run_config(scene, bucket_mib=24), scene, "float32")
    assert [arrays for arrays, _ in buckets] == [1] * len(buckets)
    assert max(len(tensors) for _, tensors in buckets) > 1


@pytest.mark.ray
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_buckets_hold_every_parameter_as_it_is_once(
    worlds: dict[int, World], scene: Scene, stage: int
) -> None:
    config = run_config(scene, world_size=2, zero_stage=stage, bucket_mib=24)
    (buckets, weights), (nothing, _) = worlds[2].run(published, config, scene, "float32")
    assert nothing is None
    assert len(buckets) > 1
    for _, tensors in buckets:
        assert sum(array.nbytes for array in tensors.values()) <= 24 << 10 or len(tensors) == 1
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
            published, run_config(scene, world_size=2, zero_stage=3), scene, dtype
        )
        found = {name: array for _, tensors in buckets for name, array in tensors.items()}
        assert "lm_head.weight" in found
        for name, array in found.items():
            want = torch.tensor(weights[name]).to(getattr(torch, dtype))
            bits = torch.tensor(array)
            assert torch.equal(bits.view(torch.bfloat16) if dtype == "bfloat16" else bits, want)

"""The teacher's log-probs are computed once a set, and are those that would be computed again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from minillm_ray.common.config.objective import ObjectiveConfig
from minillm_ray.common.errors import NonFiniteLoss
from minillm_ray.learner import fused_loss
from minillm_ray.learner.engine import TrainEngine
from minillm_ray.learner.logprob_cache import TeacherLogprobCache
from minillm_ray.learner.rank import head_of
from minillm_ray.learner.sharding import Item, shard_step
from minillm_ray.learner.step import StepRules, StepRunner
from minillm_ray.tests.learner.scenes import MAX_NEW_TOKENS, VOCABULARY, Scene, items_of, run_config
from minillm_ray.tests.learner.test_step import PlainEngine

CPU = torch.device("cpu")


@given(st.data())
def test_what_is_read_is_what_was_written_whatever_else_is_asked(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=8), "lengths")
    cache = TeacherLogprobCache(data.draw(st.integers(0, 24), "room"), 3, CPU)
    truth = {key: torch.rand(length, 3) for key, length in enumerate(lengths)}
    written: set[int] = set()
    for _ in range(data.draw(st.integers(1, 8), "times")):
        keys = data.draw(st.lists(st.sampled_from(sorted(truth)), max_size=4, unique=True), "keys")
        found = cache.rows([(key, lengths[key]) for key in keys])
        if found is None:
            assert not written >= set(keys) or not keys
            continue
        rows = torch.cat([truth[key] for key in keys])
        whole = slice(0, len(rows))
        assert found.known == (written >= set(keys))
        if not found.known:
            assert not written & set(keys)
            found.write(whole, rows)
            written |= set(keys)
        for tokens in (whole, slice(1, len(rows))):
            copy = found.read(tokens)
            assert torch.equal(copy, rows[tokens])
            copy.zero_()  # who reads may overwrite
    assert sum(lengths[key] for key in written) <= len(cache._table)


def test_the_next_set_has_the_whole_table_again() -> None:
    cache = TeacherLogprobCache(4, 3, CPU)
    assert cache.rows([("a", 3)]) is not None
    assert cache.rows([("b", 2)]) is None
    cache.release()
    again = cache.rows([("a", 4)])
    assert again is not None
    assert not again.known


class Lesson:
    """Steps on one scene's answers by one runner, without any that moves the student."""

    def __init__(self, scene: Scene, objective: ObjectiveConfig, cached_positions: int):
        self._scene, self.engine = scene, PlainEngine(scene)
        rules = StepRules(
            objective=objective,
            temperature=0.8,
            max_new_tokens=MAX_NEW_TOKENS,
            chunk_tokens=5,
            cached_positions=cached_positions,
        )
        self.runner = StepRunner(cast(TrainEngine, self.engine), rules, head_of(scene.head, VOCABULARY, CPU))

    def step(self, order: list[int], *, micro_batch_size: int) -> tuple[Any, dict[str, torch.Tensor]]:
        self.engine.student.zero_grad()
        items = items_of("answers", self._scene.samples)
        (rank_batch,) = shard_step(
            [items[i] for i in order], [], world_size=1, micro_batch_size=micro_batch_size
        )

        def load(item: Item) -> Any:
            return self._scene.samples[item.position]

        metrics = self.runner.step(rank_batch, load, fresh=False, first_epoch=False)
        return metrics, {
            name: p.grad.clone() for name, p in self.engine.student.named_parameters() if p.grad is not None
        }


OBJECTIVES = {
    "paper": ObjectiveConfig(),
    "reference": ObjectiveConfig(preset="reference"),
    "forward KL": ObjectiveConfig(kind="kd"),
    "jsd": ObjectiveConfig(kind="kd", divergence="jsd"),
    "akl": ObjectiveConfig(kind="kd", divergence="akl"),
}


@pytest.mark.parametrize("rows_at_once", [2, 1000])
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_later_epochs_learn_the_same_without_the_teachers_output_layer(
    scene: Scene, objective: ObjectiveConfig, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_loss, "PART_LOGITS", (rows_at_once * VOCABULARY,) * 2)
    count = len(scene.samples)
    cache, plain = Lesson(scene, objective, count * MAX_NEW_TOKENS), Lesson(scene, objective, 0)
    orders = [list(range(count)), list(range(count))[::-1], list(range(count))[1::2]]
    teacher = cache.runner.teacher
    assert teacher is not None
    for order, micro_batch_size in zip(orders, (3, 2, 4), strict=True):
        found, want = (lesson.step(order, micro_batch_size=micro_batch_size) for lesson in (cache, plain))
        for name, (total, _) in want[0].items():
            assert found[0][name][0] == pytest.approx(total, rel=1e-5, abs=1e-6), name
        for name, gradient in want[1].items():
            assert (found[1][name] - gradient).abs().max() <= 1e-6 * max(1.0, gradient.abs().max()), name
        cache.runner.teacher = replace(teacher, weight=torch.full_like(teacher.weight, torch.nan))
    cache.runner.release()
    with pytest.raises(NonFiniteLoss):  # the next set needs the teacher again
        cache.step(orders[0], micro_batch_size=3)


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        ({}, True),
        ({"num_iterations": 1}, False),
        ({"objective": {"single_step": False}}, False),
        ({"objective": {"kind": "kd", "sampled_share": 1.0}}, False),
        ({"objective": {"kind": "kd", "sampled_share": 1.0}, "num_iterations": 4}, True),
        ({"objective": {"kind": "kd", "sampled_share": 0.0}}, False),
    ],
)
def test_they_are_kept_where_a_set_is_met_again_and_the_loss_asks_the_teacher(
    scene: Scene, changes: dict[str, Any], asked: bool
) -> None:
    positions = 256 * MAX_NEW_TOKENS
    mib = positions * 1024 * 4 >> 20
    for room, words, fits in ((mib, 1024, True), (mib, 1025, False), (0, 1024, False)):
        config = run_config(scene, keep_logprobs_mib=room, **changes)
        assert config.rollout.rollout_batch_size == 256
        assert config.cached_positions(words) == (positions if asked and fits else 0)

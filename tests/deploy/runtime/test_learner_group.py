"""All ranks as one learner, as the driver sees them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from minillm_ray.common.errors import DataError, NonFiniteLoss, WorkerDied
from minillm_ray.common.types import AnswerFormat, Rollout, Scored, WeightVersion
from minillm_ray.common.weights import WeightManifest, checksum
from minillm_ray.deploy.runtime.learner_group import LearnerGroup
from minillm_ray.learner.worker import LearnerActor
from minillm_ray.tests.learner.scenes import VOCABULARY, Scene, items_of, model_of, run_config
from minillm_ray.tests.learner.worlds import World, measured, train
from transformers import AutoTokenizer, GenerationConfig

pytestmark = pytest.mark.ray
RANKS = 2


def start(
    scene: Scene, options: Callable[[int], dict[str, Any]] = lambda rank: {}, **learner: Any
) -> LearnerGroup:
    config = run_config(scene, world_size=RANKS, **learner)
    group = LearnerGroup(config, VOCABULARY, lambda rank: {"num_cpus": 0.2, **options(rank)})
    group.set_teacher_head(ray.put(scene.head))
    return group


@pytest.fixture(scope="module")
def group(ray_cluster: None, scene: Scene) -> Iterator[LearnerGroup]:
    """Two ranks under ZeRO-3, which each test takes as it finds them."""
    group = start(scene, zero_stage=3, cluster={"threads": 4})
    yield group
    group.stop()


def test_nobody_can_take_the_port_where_ranks_will_meet(ray_cluster: None, scene: Scene) -> None:
    config = run_config(scene, world_size=RANKS)
    first: Any = LearnerActor.options(num_cpus=0.2).remote("learner-0", 0, RANKS, config, VOCABULARY)
    address, port = ray.get(first.listen.remote())
    with pytest.raises(OSError, match="in use"):
        socket.create_server(("", port))  # of IPv4 too
    with socket.create_connection((address, port), timeout=5):
        pass  # it rings already, though nobody has loaded torch to answer
    ray.kill(first)


def arrays_of(manifest: WeightManifest) -> dict[str, np.ndarray]:
    found = {}
    for bucket in manifest.buckets:
        arrays: Any = ray.get(bucket.ref)
        assert checksum(arrays) == bucket.checksum
        views = bucket.views(arrays)
        assert views is not None
        found |= {form.name: view for form, view in zip(bucket.tensors, views, strict=True)}
    return found


def items(samples: list[Scored]) -> list[Any]:
    """Two chunks in the object store, so that ranks need parts of both."""
    half = len(samples) // 2
    first, second = samples[:half], samples[half:]
    return items_of(ray.put(first), first) + items_of(ray.put(second), second)


def poisoned(scene: Scene) -> list[Scored]:
    samples = list(scene.samples)
    passage = samples[2].passage
    assert isinstance(passage, Rollout)
    bad = np.full_like(passage.student_logprobs, np.nan)
    samples[2] = replace(samples[2], passage=replace(passage, student_logprobs=bad))
    return samples


def test_ranks_of_one_machine_share_its_threads(group: LearnerGroup) -> None:
    assert [facts.threads for facts in group.ready()] == [2, 2]


def test_a_new_group_publishes_the_student_as_it_was_loaded(group: LearnerGroup, scene: Scene) -> None:
    manifest = group.publish(WeightVersion(0))
    assert manifest.version == 0
    arrays = arrays_of(manifest)
    parameters = dict(model_of(scene.student).named_parameters())
    assert list(arrays) == list(parameters)
    for name, parameter in parameters.items():
        assert np.array_equal(arrays[name], parameter.detach().numpy())


def test_readers_hear_of_each_bucket_and_can_have_it(group: LearnerGroup) -> None:
    @ray.remote(num_cpus=0)
    class Reader:
        def __init__(self) -> None:
            self.heard: asyncio.Queue[Any] = asyncio.Queue()

        async def prefetch(self, version: WeightVersion, refs: list[Any]) -> None:
            for ref in refs:
                await self.heard.put((version, ref, checksum(await ref)))

        async def next(self) -> Any:
            return await self.heard.get()

    readers: list[Any] = [Reader.remote() for _ in range(3)]
    ray.kill(readers[0])  # and one that is lost keeps nobody from it
    manifest = group.publish(WeightVersion(1), readers)
    for reader in readers[1:]:
        for bucket in manifest.buckets:
            heard: Any = ray.get(reader.next.remote(), timeout=60)
            assert heard == (1, bucket.ref, bucket.checksum)


def test_every_rank_tells_of_its_process(group: LearnerGroup) -> None:
    facts = group.ready()
    assert [one.name for one in facts] == [f"learner-{rank}" for rank in range(RANKS)]
    assert len({one.pid for one in facts}) == RANKS
    for one in facts:
        assert one.start_s > 0
        assert one.versions.keys() == {"python", "torch", "transformers", "deepspeed"}


def test_answers_are_measured_in_the_order_in_which_they_came(group: LearnerGroup, scene: Scene) -> None:
    records = group.measure(items(scene.samples))
    assert [r.prompt_id for r in records] == [s.passage.prompt_id for s in scene.samples]
    assert [r.tokens for r in records] == [len(s.passage.answer_ids) for s in scene.samples]
    assert group.measure([]) == []


def test_the_group_learns_exactly_as_its_ranks_do(
    group: LearnerGroup, scene: Scene, worlds: dict[int, World], tmp_path: Path
) -> None:
    config = run_config(scene, world_size=RANKS, zero_stage=3)
    (metrics, weights), _ = worlds[RANKS].run(train, config, scene, 2)
    answers, texts = items(scene.samples), items_of(ray.put(scene.texts), scene.texts)
    group.save(tmp_path / "start")
    reports = [group.step(answers, texts, fresh=n == 0, first_epoch=True) for n in range(2)]
    assert [report.step for report in reports] == [1, 2]
    for report, want in zip(reports, metrics, strict=True):
        total, count = report.metrics["learner/loss"]
        assert total / count == pytest.approx(want["learner/loss"], rel=1e-6)
    arrays = arrays_of(group.publish(WeightVersion(1)))
    for name, array in weights.items():
        assert np.abs(arrays[name] - array).max() < 1e-6
    assert group.restore(tmp_path / "start") == 0
    again = group.step(answers, texts, fresh=True, first_epoch=True)
    assert again.metrics["learner/loss"] == reports[0].metrics["learner/loss"]


def test_an_export_and_its_adoption_pass_through_the_group(
    group: LearnerGroup, scene: Scene, tmp_path: Path
) -> None:
    group.export(tmp_path / "student", AnswerFormat(end_ids=(1, 5), chat_template="{{ messages }}"))
    before = arrays_of(group.publish(WeightVersion(2)))
    group.step(items(scene.samples), fresh=True, first_epoch=True)
    group.load_weights(tmp_path / "student")
    after = arrays_of(group.publish(WeightVersion(3)))
    opened = dict(model_of(tmp_path / "student").named_parameters())
    for name, array in after.items():
        assert np.array_equal(array, before[name])
        assert np.array_equal(array, opened[name].detach().numpy())
    assert GenerationConfig.from_pretrained(tmp_path / "student").eos_token_id == [1, 5]
    assert AutoTokenizer.from_pretrained(tmp_path / "student").chat_template == "{{ messages }}"


def test_an_error_of_all_ranks_reaches_the_driver_as_it_is_and_the_group_lives_on(
    group: LearnerGroup, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no finished checkpoint"):
        group.restore(tmp_path / "nothing")
    assert group.publish(WeightVersion(4)).version == 4


def test_lost_or_poisoned_ranks_end_as_one_and_say_who(ray_cluster: None, scene: Scene) -> None:
    group = start(scene, lambda rank: {"name": f"other-learner-{rank}"})
    before = arrays_of(group.publish(WeightVersion(0)))
    with pytest.raises(NonFiniteLoss, match="p/2#0"):
        group.step(items(poisoned(scene)), fresh=True, first_epoch=True)
    after = arrays_of(group.publish(WeightVersion(1)))
    assert all(np.array_equal(before[name], after[name]) for name in before)
    second: Any = ray.get_actor("other-learner-1")
    victim: Any = ray.get(second.__ray_call__.remote(lambda actor: os.getpid()))
    began = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(WorkerDied, match="other-learner-1"):
        group.step(items(scene.samples), fresh=True, first_epoch=True)
    with pytest.raises(WorkerDied, match="other-learner-1"):
        group.publish(WeightVersion(2))
    assert time.monotonic() - began < 30
    group.stop()


def test_an_error_of_one_rank_ends_the_others_that_wait_for_it(
    ray_cluster: None, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minillm_ray.deploy.runtime.learner_group.GRACE_S", 1.0)
    group = start(scene, lambda rank: {"name": f"third-learner-{rank}"}, micro_batch_size=8)
    samples = list(scene.samples)
    samples[0] = replace(samples[0], hidden=None)
    with pytest.raises(DataError, match=r"p/0#0.*hidden states"):
        group.step(items(samples), fresh=True, first_epoch=True)
    with pytest.raises(WorkerDied):
        group.publish(WeightVersion(1))


def test_measures_of_two_ranks_are_those_of_one(scene: Scene, worlds: dict[int, World]) -> None:
    (alone,) = worlds[1].run(measured, run_config(scene), scene)
    shared = worlds[2].run(measured, run_config(scene, world_size=2, zero_stage=3), scene)
    found = {record.prompt_id: record for records in shared for record in records}
    assert len(found) == len(alone) == len(scene.samples)
    for record in alone:
        assert found[record.prompt_id].reverse_kl == pytest.approx(record.reverse_kl, rel=1e-5)
        assert found[record.prompt_id].nll == pytest.approx(record.nll, rel=1e-5)

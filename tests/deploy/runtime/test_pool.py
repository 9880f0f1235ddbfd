from types import SimpleNamespace
from typing import Any

import pytest
import ray
from minillm_ray.common.errors import DataError, WorkerDied
from minillm_ray.common.types import BatchSummary
from minillm_ray.deploy.runtime.pool import Pool, chunked, result_of
from minillm_ray.deploy.runtime.workers import WorkerGroup
from ray.actor import exit_actor

pytestmark = pytest.mark.ray


BAD = 113


@ray.remote(num_cpus=0)
class Worker:
    """Squares numbers; dies at a number it was told of."""

    def __init__(self, deadly: int | None = None):
        self._deadly = deadly

    def work(self, piece):
        if self._deadly in piece:
            exit_actor()
        if BAD in piece:
            raise DataError("a number that cannot be squared")
        sizes = BatchSummary(prompt_ids=(), samples=(), prompt_tokens=(), answer_tokens=tuple(piece))
        return [x * x for x in piece], sizes

    def name(self):
        return "worker"


def call(actor, piece):
    return actor.work.options(num_returns=2).remote(list(piece))


def values(chunks):
    return [x for chunk in chunks for x in ray.get(chunk.ref)]


def test_results_come_in_the_order_of_the_pieces(ray_cluster):
    pool = Pool.of([Worker.remote() for _ in range(3)], "worker")
    seen = []
    chunks = pool.map(list(chunked(range(20), 3)), call, seen.append)
    assert values(chunks) == [x * x for x in range(20)]
    assert len(seen) == 7


def test_killing_an_actor_loses_no_piece_and_names_it(ray_cluster):
    pool = Pool.of([Worker.remote(), Worker.remote(deadly=2)], "worker")
    pieces = list(chunked(range(12), 2))
    assert values(pool.map(pieces, call)) == [x * x for x in range(12)]
    assert pool.lost == ["worker-1"]  # it was given the second piece at once
    assert pool.names == ["worker-0"]


def test_when_every_actor_is_gone_the_run_is_told_who(ray_cluster):
    pool = Pool.of([Worker.remote(deadly=0), Worker.remote(deadly=0)], "worker")
    with pytest.raises(WorkerDied, match="worker-0, worker-1"):
        pool.map([[0]], call)


def test_what_an_actor_says_to_a_person_comes_as_it_was_said(ray_cluster):
    pool = Pool.of([Worker.remote()], "worker")
    with pytest.raises(DataError) as told:
        pool.map([[1], [BAD]], call)
    assert type(told.value) is DataError
    assert str(told.value) == "a number that cannot be squared"


def test_a_lone_actor_that_dies_is_named(ray_cluster):
    worker = Worker.remote(deadly=0)
    with pytest.raises(WorkerDied, match="writer died"):
        result_of(call(worker, [0])[1], "writer")


def gone(actor):
    """The actor, which has died while nobody asked it for anything."""
    ray.kill(actor)
    return actor


def test_an_answer_that_any_actor_can_give_comes_from_one_that_lives(ray_cluster):
    pool = Pool.of([gone(Worker.remote()), Worker.remote()], "teacher")
    assert pool.ask_one(lambda actor: actor.name.remote()) == "worker"
    assert pool.lost == ["teacher-0"]
    assert values(pool.map([[1], [2]], call)) == [1, 4]
    assert pool.lost == ["teacher-0"]  # once
    with pytest.raises(WorkerDied, match="teacher-0"):
        Pool.of([gone(Worker.remote())], "teacher").ask_one(lambda actor: actor.name.remote())


def test_the_memory_of_a_run_is_told_though_its_teacher_died_when_it_had_nothing_left_to_do(ray_cluster):
    group: Any = WorkerGroup.__new__(WorkerGroup)
    group._sink, group.learner = Worker.remote(), SimpleNamespace(peak_memory=lambda: {"learner-0": 7})
    group._pools = [Pool.of([Worker.remote()], "rollout"), Pool.of([gone(Worker.remote())], "teacher")]
    memory = group.peak_memory()
    assert set(memory) == {"driver", "writer", "rollout-0", "learner-0"}
    assert memory["rollout-0"] > 1 << 20
    assert group.lost == ["teacher-0"]

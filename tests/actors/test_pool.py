import pytest
import ray
from minillm_ray.actors.pool import Pool, pieces_of
from minillm_ray.common.errors import PartLost
from minillm_ray.common.messages import BatchSummary
from ray.actor import exit_actor

pytestmark = pytest.mark.ray


@ray.remote(num_cpus=0)
class Worker:
    """Squares numbers; dies at a number it was told of."""

    def __init__(self, deadly: int | None = None):
        self._deadly = deadly

    def work(self, piece):
        if self._deadly in piece:
            exit_actor()
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
    chunks = pool.spread(list(pieces_of(range(20), 3)), call, seen.append)
    assert values(chunks) == [x * x for x in range(20)]
    assert len(seen) == 7


def test_killing_an_actor_loses_no_piece_and_names_it(ray_cluster):
    pool = Pool.of([Worker.remote(), Worker.remote(deadly=2)], "worker")
    pieces = list(pieces_of(range(12), 2))
    assert values(pool.spread(pieces, call)) == [x * x for x in range(12)]
    assert pool.lost == ["worker-1"]  # it was given the second piece at once
    assert pool.names == ["worker-0"]


def test_when_every_actor_is_gone_the_run_is_told_who(ray_cluster):
    pool = Pool.of([Worker.remote(deadly=0), Worker.remote(deadly=0)], "worker")
    with pytest.raises(PartLost, match="worker-0, worker-1"):
        pool.spread([[0]], call)

"""One learner rank in one Ray process."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import ray

from ..common.config.run import RunConfig
from ..common.logs import EventLog, LogTarget, quiet_libraries, setup_logging
from ..common.metrics import Metrics
from ..common.process import ProcessFacts, collector_paused, use_threads
from ..common.types import AnswerFormat, AnswerMeasure, Floats, Passage, WeightVersion
from ..common.weights import Arrays, WeightManifest

if TYPE_CHECKING:
    from .rank import Rank
    from .sharding import RankBatch, RankItems


log = EventLog(__name__)


@ray.remote(max_restarts=0)  # a rank that starts anew has none of what the others remember
class LearnerActor:
    """A thin shell around `Rank`. All ranks get the same calls in the same order."""

    def __init__(self, name: str, rank: int, world: int, config: RunConfig, vocabulary: int):
        self._name, self._number, self._world = name, rank, world
        self._config, self._vocabulary = config, vocabulary
        self._listen_socket: socket.socket | None = None
        self._sees_run_dir = setup_logging(LogTarget.of_process(), name)

    def listen(self) -> tuple[str, int]:
        """Address and port where this rank listens from now on, for the rendezvous of all ranks."""
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        self._listen_socket = socket.create_server(("", 0), family=family, dualstack_ipv6=both)
        return ray.util.get_node_ip_address(), self._listen_socket.getsockname()[1]

    def node(self) -> str:
        """Ray's name for the machine on which this rank runs."""
        return ray.get_runtime_context().get_node_id()

    def ready(self, address: str, port: int, *nodes: str) -> ProcessFacts:
        """Join the other ranks and load the student; facts for the log. Call it first, once.

        `address` and `port` are where rank 0 listens, `nodes` those of all ranks: ranks of one machine share
        its cores.
        """
        start = time.perf_counter()
        use_threads(self._config.cluster.threads, sharing=max(1, nodes.count(self.node())))
        with collector_paused():
            from .rank import Rank

        self._rank: Rank = Rank(
            self._config,
            self._vocabulary,
            ray.get,
            rank=self._number,
            world=self._world,
            address=address,
            port=port,
            listen_socket=self._listen_socket,
        )
        quiet_libraries()
        facts = ProcessFacts.gather(
            self._name,
            node=ray.util.get_node_ip_address(),
            start_s=time.perf_counter() - start,
            sees_run_dir=self._sees_run_dir,
            libraries=("torch", "transformers", "deepspeed"),
        )
        log.event("ready", facts=asdict(facts))
        return facts

    def set_teacher_head(self, arrays: Mapping[str, Any]) -> None:
        """See Rank.set_teacher_head."""
        self._rank.set_teacher_head(arrays)

    def step(self, rank_batch: RankBatch, *, fresh: bool, first_epoch: bool) -> Metrics:
        """See StepRunner.step."""
        return self._rank.step(rank_batch, fresh=fresh, first_epoch=first_epoch)

    def release(self) -> None:
        """See Rank.release."""
        self._rank.release()

    def measure(self, rank_items: RankItems, temperature: float) -> list[AnswerMeasure]:
        """See measure.measure."""
        return self._rank.measure(rank_items, temperature)

    def read(self, passages: Sequence[Passage]) -> list[Floats]:
        """See Rank.read."""
        return self._rank.read(passages)

    def publish(self, version: WeightVersion, readers: Sequence[Any]) -> WeightManifest | None:
        """All weights, into the object store, where they stay while rank 0's manifest is held.

        Each reader is told of a bucket as soon as it is there, and can fetch it while the next one is put.
        """

        def put(arrays: Arrays) -> Any:
            ref = ray.put(arrays)
            for reader in readers:
                reader.prefetch.remote(version, [ref])
            return ref

        return self._rank.publish(version, put)

    def save(self, folder: str, step: int) -> None:
        """See checkpoint.save."""
        self._rank.save(folder, step)

    def restore(self, folder: str) -> int:
        """See checkpoint.restore."""
        return self._rank.restore(folder)

    def export(self, folder: str, answers: AnswerFormat) -> None:
        """See checkpoint.export_student."""
        self._rank.export(folder, answers)

    def load_weights(self, folder: str) -> None:
        """See checkpoint.load_weights."""
        self._rank.load_weights(folder)

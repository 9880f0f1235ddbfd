"""One learner rank: its engine, its step, and the chunks of answers that they read. Knows no Ray.

All ranks get the same calls in the same order, and run them in lock-step.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..common.arrays import tensor_of
from ..common.config.run import RunConfig
from ..common.heads import Head
from ..common.logs import EventLog
from ..common.metrics import Metrics
from ..common.types import (
    AnswerFormat,
    AnswerMeasure,
    Floats,
    Passage,
    Scored,
    WeightVersion,
    answer_names,
    sample_of,
)
from ..common.weights import WeightManifest
from . import checkpoint
from .batching import passage_of
from .deepspeed_engine import DeepSpeedEngine, join
from .measure import measure, read_logprobs
from .publish import Put, publish
from .sharding import Item, RankBatch, RankItems
from .step import StepRules, StepRunner

MIB = 1 << 20
log = EventLog(__name__)
Fetch = Callable[[list[Any]], list[list[Scored | Passage]]]
"""The chunks behind references, in their order."""


class Chunks:
    """Lists of samples from the object store, without a copy; those of the set in training stay."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._open: dict[Any, list[Scored | Passage]] = {}

    def fetch(self, rank_items: RankItems) -> None:
        """Fetch all chunks of these items that are not here yet."""
        missing = [chunk for chunk in _chunks_of(rank_items) if chunk not in self._open]
        self._open |= zip(missing, self._fetch(missing), strict=True)

    def load(self, item: Item) -> Scored | Passage:
        """One sample of a fetched chunk."""
        return self._open[item.chunk][item.position]

    def release(self, rank_items: RankItems | None = None) -> None:
        """Drop the references to these items' chunks, or to all."""
        for chunk in list(self._open) if rank_items is None else _chunks_of(rank_items):
            del self._open[chunk]


def _chunks_of(rank_items: RankItems) -> list[Any]:
    return list(dict.fromkeys(item.chunk for item in rank_items.items))


def head_of(arrays: Mapping[str, Any], vocabulary: int, device: torch.device) -> Head:
    """An output layer that came as arrays, cut to the vocabulary; over the same memory if on the CPU."""

    def tensor(array: Any) -> torch.Tensor:
        return tensor_of(array, arrays["dtype"])[:vocabulary].to(device)

    return Head(
        weight=tensor(arrays["weight"]),
        bias=None if arrays["bias"] is None else tensor(arrays["bias"]),
        scale=arrays["scale"],
        soft_cap=arrays["soft_cap"],
        vocabulary=vocabulary,
    )


class Rank:
    """The student in training, as one rank holds it. Connects to the other ranks (see join)."""

    def __init__(
        self, config: RunConfig, vocabulary: int, fetch: Fetch, *,
        rank: int, world: int, address: str, port: int, listen_socket: socket.socket | None,
    ):  # fmt: skip
        self._config, self._vocabulary, self._fetch = config, vocabulary, fetch
        self._rank, self._world, self._steps = rank, world, 0
        self._teacher: Head | None = None
        self._chunks = Chunks(fetch)
        device = join(rank, world, address, port, listen_socket)
        self._engine = DeepSpeedEngine(
            config.student, config.learner, vocabulary, device, dropout=config.uses_dropout
        )
        torch.manual_seed(config.seed + rank)
        self._runner = StepRunner(
            self._engine,
            StepRules(
                objective=config.objective,
                temperature=config.rollout.temperature if config.samples_answers else 1.0,
                max_new_tokens=config.rollout.max_new_tokens,
                chunk_tokens=config.learner.head_chunk,
                cached_positions=config.cached_positions(vocabulary),
                plugins=config.plugins,
            ),
        )

    def set_teacher_head(self, arrays: Mapping[str, Any]) -> None:
        """The teacher's output layer: the fields of common.heads.Head as arrays, and their `dtype`.

        Ranks of one machine share its memory in the object store, unless they compute on a GPU.
        """
        self._teacher = head_of(arrays, self._vocabulary, self._engine.device)
        self._runner.teacher = self._teacher

    def step(self, rank_batch: RankBatch, *, fresh: bool, first_epoch: bool) -> Metrics:
        """See StepRunner.step."""
        self._chunks.fetch(rank_batch.answers)
        self._chunks.fetch(rank_batch.texts)
        try:
            metrics = self._runner.step(rank_batch, self._chunks.load, fresh=fresh, first_epoch=first_epoch)
        finally:
            self._chunks.release(rank_batch.texts)  # used once
        self._steps += 1
        passages = [passage_of(self._chunks.load(item)) for item in rank_batch.answers.items]
        ids = answer_names([p.prompt_id for p in passages], map(sample_of, passages))
        log.event("trained", step=self._steps, ids=ids, first_epoch=first_epoch)
        return metrics

    def release(self) -> None:
        """Drop the references to the set of answers, so that the object store has room for the next one."""
        self._chunks.release()
        self._runner.release()

    def measure(self, rank_items: RankItems, temperature: float) -> list[AnswerMeasure]:
        """See measure.measure."""
        chunks = Chunks(self._fetch)
        chunks.fetch(rank_items)
        return measure(
            self._engine,
            rank_items,
            chunks.load,
            teacher=self._teacher,
            temperature=temperature,
            chunk_tokens=self._config.learner.head_chunk,
        )

    def read(self, passages: Sequence[Passage]) -> list[Floats]:
        """See measure.read_logprobs."""
        return read_logprobs(
            self._engine,
            passages,
            micro_batch_size=self._config.learner.micro_batch_size,
            chunk_tokens=self._config.learner.head_chunk,
        )

    def publish(self, version: WeightVersion, put: Put) -> WeightManifest | None:
        """All weights to where `put` stores them; the manifest on rank 0."""
        return publish(
            self._engine,
            version,
            put if self._rank == 0 else None,
            bucket_bytes=self._config.learner.bucket_mib * MIB,
            dtype=self._config.rollout.dtype,
        )

    def save(self, folder: str, step: int) -> None:
        """See checkpoint.save."""
        checkpoint.save(self._engine, Path(folder), step=step, rank=self._rank, world=self._world)

    def restore(self, folder: str) -> int:
        """See checkpoint.restore."""
        self.release()
        self._steps = checkpoint.restore(self._engine, Path(folder), rank=self._rank, world=self._world)
        log.event("restored", step=self._steps)
        return self._steps

    def export(self, folder: str, answers: AnswerFormat) -> None:
        """See checkpoint.export_student."""
        start = self._config.student
        checkpoint.export_student(self._engine, Path(folder), start, answers, rank=self._rank)

    def load_weights(self, folder: str) -> None:
        """See checkpoint.load_weights."""
        checkpoint.load_weights(self._engine, Path(folder), rank=self._rank)

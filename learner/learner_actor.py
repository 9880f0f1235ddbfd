"""One learner rank as a Ray actor: a thin shell around the engine, the step and the chunks they read."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import torch

from ..common.config import RunConfig
from ..common.heads import Head
from ..common.messages import Passage, Scored, WeightVersion
from ..common.metrics import Metrics
from ..common.weights import WeightManifest
from . import checkpoint
from .batching import as_tensor
from .dealing import Hand, Item, Share
from .deepspeed_engine import DeepSpeedEngine, join
from .measure import AnswerMeasure, measure
from .publish import publish
from .step import StepRules, StepRunner

MIB = 1 << 20


class Chunks:
    """Lists of samples out of the object store, without a copy; the set in training is kept open."""

    def __init__(self) -> None:
        self._open: dict[Any, list[Scored | Passage]] = {}

    def fetch(self, hand: Hand) -> None:
        """Open all chunks of a hand that are not open yet."""
        missing = [chunk for chunk in _chunks_of(hand) if chunk not in self._open]
        self._open |= zip(missing, ray.get(missing), strict=True)

    def load(self, item: Item) -> Scored | Passage:
        """One sample of a fetched chunk."""
        return self._open[item.chunk][item.position]

    def forget(self, hand: Hand | None = None) -> None:
        """Let go of a hand's chunks, or of all."""
        for chunk in list(self._open) if hand is None else _chunks_of(hand):
            del self._open[chunk]


def _chunks_of(hand: Hand) -> list[Any]:
    return list(dict.fromkeys(item.chunk for run in hand.micro_batches for item in run))


def head_of(arrays: Mapping[str, Any], vocabulary: int, device: torch.device) -> Head:
    """An output layer that came as arrays, cut to the vocabulary; over the same memory if on the CPU."""

    def tensor(array: Any) -> torch.Tensor:
        return as_tensor(array, arrays["dtype"])[:vocabulary].to(device)

    return Head(
        weight=tensor(arrays["weight"]),
        bias=None if arrays["bias"] is None else tensor(arrays["bias"]),
        scale=arrays["scale"],
        soft_cap=arrays["soft_cap"],
        vocabulary=vocabulary,
    )


@ray.remote(max_restarts=0)  # a rank that starts anew has none of what the others remember
class LearnerActor:
    """One rank. All ranks get the same calls in the same order, and walk through them in lock-step."""

    def __init__(self, name: str, rank: int, world: int, config: RunConfig, vocabulary: int):
        self._name, self._rank, self._world = name, rank, world
        self._config, self._vocabulary = config, vocabulary
        self._teacher: Head | None = None
        self._chunks = Chunks()
        self._published: WeightManifest | None = None

    def place(self) -> tuple[str, int]:
        """Address and a free port of this machine, where the ranks can meet."""
        with socket.socket() as free:
            free.bind(("", 0))
            return ray.util.get_node_ip_address(), free.getsockname()[1]

    def meet(self, address: str, port: int) -> None:
        """Join the other ranks and load the student."""
        config = self._config
        device = join(self._rank, self._world, address, port)
        self._engine = DeepSpeedEngine(
            config.student,
            config.learner,
            self._vocabulary,
            device,
            dropout=config.uses_dropout,
        )
        torch.manual_seed(config.seed + self._rank)
        self._runner = StepRunner(
            self._engine,
            StepRules(
                objective=config.objective,
                temperature=config.rollout.temperature if config.samples_answers else 1.0,
                max_new_tokens=config.rollout.max_new_tokens,
                chunk_tokens=config.learner.head_chunk,
            ),
        )

    def set_teacher_head(self, arrays: Mapping[str, Any]) -> None:
        """The teacher's output layer: the fields of common.heads.Head as arrays, and their `dtype`.

        Ranks of one machine share its memory in the object store, unless they compute on a GPU.
        """
        self._teacher = head_of(arrays, self._vocabulary, self._engine.device)
        self._runner.teacher = self._teacher

    def step(self, share: Share, *, fresh: bool, first_epoch: bool) -> Metrics:
        """See StepRunner.step."""
        self._chunks.fetch(share.answers)
        self._chunks.fetch(share.texts)
        try:
            return self._runner.step(share, self._chunks.load, fresh=fresh, first_epoch=first_epoch)
        finally:
            self._chunks.forget(share.texts)  # met once

    def forget(self) -> None:
        """Let go of the set of answers, so that the next one finds room in the object store."""
        self._chunks.forget()

    def measure(self, hand: Hand, temperature: float) -> list[AnswerMeasure]:
        """See measure.measure."""
        chunks = Chunks()
        chunks.fetch(hand)
        return measure(
            self._engine,
            hand,
            chunks.load,
            teacher=self._teacher,
            temperature=temperature,
            chunk_tokens=self._config.learner.head_chunk,
        )

    def publish(self, version: WeightVersion) -> WeightManifest | None:
        """All weights, into the object store; the manifest from rank 0, which keeps the newest one alive."""
        manifest = publish(
            self._engine,
            version,
            ray.put if self._rank == 0 else None,
            bucket_bytes=self._config.learner.bucket_mib * MIB,
            dtype=self._config.rollout.precision,
        )
        self._published = manifest
        return manifest

    def save(self, folder: str, step: int) -> None:
        """See checkpoint.save."""
        checkpoint.save(self._engine, Path(folder), step=step, rank=self._rank, world=self._world)

    def restore(self, folder: str) -> int:
        """See checkpoint.restore."""
        self._chunks.forget()
        return checkpoint.restore(self._engine, Path(folder), rank=self._rank, world=self._world)

    def export(self, folder: str) -> None:
        """See checkpoint.export_student."""
        checkpoint.export_student(self._engine, Path(folder), self._config.student, rank=self._rank)

    def adopt(self, folder: str) -> None:
        """See checkpoint.adopt."""
        checkpoint.adopt(self._engine, Path(folder), rank=self._rank)

"""Processes that play the ranks of a learner, kept for many tests, and what they can be asked to run."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from minillm_ray.common.config.run import RunConfig
from minillm_ray.common.errors import NonFiniteLoss
from minillm_ray.common.heads import Head
from minillm_ray.common.types import AnswerFormat, AnswerMeasure, Passage, WeightVersion
from minillm_ray.learner import checkpoint
from minillm_ray.learner.batching import batch_of
from minillm_ray.learner.deepspeed_engine import DeepSpeedEngine, join
from minillm_ray.learner.fused_loss import FusedLoss
from minillm_ray.learner.measure import measure
from minillm_ray.learner.publish import publish
from minillm_ray.learner.rank import head_of
from minillm_ray.learner.sharding import Item, shard_batch, shard_step
from minillm_ray.learner.step import StepRules, StepRunner
from minillm_ray.tests.learner.scenes import MAX_NEW_TOKENS, VOCABULARY, Scene, items_of


@ray.remote(num_cpus=0.2)
class Rank:
    """One process of a world."""

    _listen_socket: socket.socket | None = None

    def listen(self) -> int:
        self._listen_socket = socket.create_server(("127.0.0.1", 0))
        return self._listen_socket.getsockname()[1]

    def join(self, rank: int, world: int, port: int) -> None:
        self._rank, self._world = rank, world
        self._device = join(rank, world, "127.0.0.1", port, self._listen_socket)

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(self._rank, self._world, self._device, *args)


class World:
    """So many ranks, which meet while the caller goes on."""

    def __init__(self, size: int):
        self._ranks: list[Any] = [Rank.remote() for _ in range(size)]
        port = self._ranks[0].listen.remote()
        self._met = [rank.join.remote(n, size, port) for n, rank in enumerate(self._ranks)]

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """`function(rank, world, device, *args)` on every rank at once."""
        ray.get(self._met)
        return ray.get([rank.run.remote(function, *args) for rank in self._ranks])

    def end(self) -> None:
        for rank in self._ranks:
            ray.kill(rank)


class Learner:
    """An engine over a scene, in the process of one rank."""

    def __init__(self, rank: int, world: int, device: torch.device, config: RunConfig, scene: Scene):
        self.rank, self.world, self.scene, self.config = rank, world, scene, config
        self.engine = DeepSpeedEngine(config.student, config.learner, VOCABULARY, device, dropout=False)
        self.runner = StepRunner(
            self.engine,
            StepRules(
                objective=config.objective,
                temperature=1.0,
                max_new_tokens=MAX_NEW_TOKENS,
                chunk_tokens=4,
            ),
            head_of(scene.head, VOCABULARY, device),
        )

    def step(self, answers: Sequence[Item], texts: Sequence[Item] = ()) -> dict[str, float]:
        rank_batches = shard_step(
            answers, texts, world_size=self.world, micro_batch_size=self.config.learner.micro_batch_size
        )
        metrics = self.runner.step(rank_batches[self.rank], self._load, fresh=True, first_epoch=True)
        return {name: total / count for name, (total, count) in metrics.items()}

    def items(self) -> tuple[list[Item], list[Item]]:
        return items_of("answers", self.scene.samples), items_of("texts", self.scene.texts)

    def measure(self) -> list[AnswerMeasure]:
        shards = shard_batch(
            self.items()[0], world_size=self.world, micro_batch_size=self.config.learner.micro_batch_size
        )
        return measure(
            self.engine,
            shards[self.rank],
            self._load,
            teacher=self.runner.teacher,
            temperature=1.0,
            chunk_tokens=4,
        )

    def weights(self) -> dict[str, np.ndarray]:
        """All parameters, on every rank."""
        with self.engine.gathered(list(self.engine.shapes())) as whole:
            return {name: tensor.detach().float().numpy().copy() for name, tensor in whole.items()}

    def _load(self, item: Item) -> Any:
        return (self.scene.samples if item.chunk == "answers" else self.scene.texts)[item.position]


def train(
    rank: int, world: int, device: torch.device, config: RunConfig, scene: Scene, steps: int
) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    """Metrics of each step over the whole scene, and the weights afterwards."""
    learner = Learner(rank, world, device, config, scene)
    metrics = [learner.step(*learner.items()) for _ in range(steps)]
    return metrics, learner.weights()


def train_in_halves(
    rank: int, world: int, device: torch.device, config: RunConfig, scene: Scene, folder: Path
) -> tuple[list[float], list[float], int]:
    """Losses of four steps in one go; of the last two after a checkpoint and a new beginning; its step."""
    first = Learner(rank, world, device, config, scene)
    losses = []
    for step in range(4):
        losses.append(first.step(*first.items())["learner/loss"])
        if step == 1:
            checkpoint.save(first.engine, folder, step=2, rank=rank, world=world)
    second = Learner(rank, world, device, config, scene)
    step = checkpoint.restore(second.engine, folder, rank=rank, world=world)
    again = [second.step(*second.items())["learner/loss"] for _ in range(2)]
    return losses, again, step


def meet_a_bad_answer(
    rank: int, world: int, device: torch.device, config: RunConfig, scene: Scene
) -> tuple[str, bool]:
    """What a step over a scene that is not finite raised, and whether any weight moved."""
    learner = Learner(rank, world, device, config, scene)
    before, told = learner.weights(), ""
    try:
        learner.step(*learner.items())
    except NonFiniteLoss as error:
        told = str(error)
    after = learner.weights()
    return told, any((before[name] != after[name]).any() for name in before)


def step_on_infinity(
    rank: int, world: int, device: torch.device, config: RunConfig, scene: Scene
) -> tuple[float, bool]:
    """The norm that a step tells when one rank's loss is finite and its gradient is not; what it moved."""
    learner = Learner(rank, world, device, config, scene)
    before = learner.weights()
    factor = float("inf") if rank == world - 1 else 1.0

    def use(hidden: torch.Tensor, head: Head) -> FusedLoss:
        loss = (hidden.sum() * 0.0).nan_to_num() * factor
        nothing = hidden.new_zeros(0)
        return FusedLoss(loss=loss, divergence=nothing, logprobs=nothing, figures={})

    some = Passage(prompt_id="x", prompt_ids=np.ones(1, np.int32), answer_ids=np.ones(4, np.int32))
    batch = batch_of([some], torch.device("cpu"), hidden=False)
    learner.engine.backward(learner.engine.run(batch, use, train=True).loss)
    norm = learner.engine.step()
    after = learner.weights()
    return norm, any((before[name] != after[name]).any() for name in before)


def step_on_the_body_alone(
    rank: int, world: int, device: torch.device, config: RunConfig, scene: Scene
) -> tuple[np.ndarray, np.ndarray]:
    """An output layer that no loss reaches, before and after a step."""
    learner = Learner(rank, world, device, config, scene)

    def use(hidden: torch.Tensor, head: Head) -> FusedLoss:
        nothing = hidden.new_zeros(0)
        return FusedLoss(loss=hidden.square().sum(), divergence=nothing, logprobs=nothing, figures={})

    some = Passage(prompt_id="x", prompt_ids=np.ones(1, np.int32), answer_ids=np.ones(4, np.int32))
    batch = batch_of([some], torch.device("cpu"), hidden=False)
    before = learner.weights()["lm_head.weight"]
    for _ in range(2):  # a first step warms the rate up from nothing
        learner.engine.backward(learner.engine.run(batch, use, train=True).loss)
        learner.engine.step()
    return before, learner.weights()["lm_head.weight"]


def published(
    rank: int, world: int, device: torch.device, config: RunConfig, scene: Scene, dtype: str
) -> tuple[list[tuple[int, dict[str, np.ndarray]]] | None, dict[str, np.ndarray]]:
    """(arrays, tensors) of each bucket after a step, from rank 0; and the weights."""
    learner = Learner(rank, world, device, config, scene)
    learner.step(*learner.items())
    manifest = publish(
        learner.engine,
        WeightVersion(1),
        (lambda arrays: [array.copy() for array in arrays]) if rank == 0 else None,
        bucket_bytes=config.learner.bucket_mib << 10,  # KiB here: these models are small
        dtype=dtype,
    )
    buckets = None
    if manifest is not None:
        buckets = [
            (len(b.ref), {f.name: view for f, view in zip(b.tensors, b.views(b.ref) or (), strict=True)})
            for b in manifest.buckets
        ]
    return buckets, learner.weights()


def exported_and_adopted(
    rank: int, world: int, device: torch.device, config: RunConfig, scene: Scene, folder: Path
) -> tuple[list[dict[str, np.ndarray]], list[float]]:
    """Weights when exported, two steps later, when taken on again; losses of those steps and two more."""
    learner = Learner(rank, world, device, config, scene)
    items = learner.items()
    learner.step(*items)
    weights = [learner.weights()]
    checkpoint.export_student(learner.engine, folder, config.student, AnswerFormat(), rank=rank)
    losses = [learner.step(*items)["learner/loss"] for _ in range(2)]
    weights.append(learner.weights())
    checkpoint.load_weights(learner.engine, folder, rank=rank)
    weights.append(learner.weights())
    losses += [learner.step(*items)["learner/loss"] for _ in range(2)]
    return weights, losses


def measured(
    rank: int, world: int, device: torch.device, config: RunConfig, scene: Scene
) -> list[AnswerMeasure]:
    """Records of this rank's answers."""
    return Learner(rank, world, device, config, scene).measure()

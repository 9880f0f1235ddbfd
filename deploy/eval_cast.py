"""The actors that look at one model: engines that answer, readers that measure, and the grader."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from ..actors.grader import Graded
from ..actors.grader_actor import GraderActor
from ..actors.measurer import LabelLogprobs, PassageMeasure
from ..actors.measurer_actor import MeasurerActor
from ..actors.pool import Chunk, Pool, pieces_of, result_of
from ..actors.rollout_actor import RolloutActor
from ..common.config import ModelConfig
from ..common.eval_config import EvalConfig, plain_model
from ..common.messages import Ids, Prompt, SamplingSpec
from .cast import Told, nobody, wait_for
from .models import load_tokenizer
from .placement import Place, Reservation


class EvalCast:
    """All roles of an evaluation, for one model at a time. Holds references of answers, never tokens."""

    def __init__(
        self, config: EvalConfig, model: ModelConfig, vocabulary: int, reserved: Reservation, compares: bool
    ):
        teacher = plain_model(config.teacher) if compares and config.teacher else None
        model = plain_model(model)
        self._chunk = config.engine.chunk
        self._grader: Any = GraderActor.options(**reserved.writer_options("grader")).remote(
            "grader", load_tokenizer(model, "models")
        )
        self._rollouts = Pool.of(
            [
                RolloutActor.options(**reserved.options(name)).remote(
                    name, model, teacher, config.engine,
                    vocabulary=vocabulary,
                    max_tokens=config.max_prompt_tokens + config.engine.max_new_tokens,
                    threads=reserved.threads(name),
                )
                for name in reserved.names("rollout")
            ],
            "rollout",
        )  # fmt: skip
        self._measurers = Pool.of(
            [
                MeasurerActor.options(**reserved.options(name)).remote(
                    name, model, teacher, config.scoring, vocabulary, reserved.threads(name)
                )
                for name in reserved.names("measurer")
            ],
            "measurer",
        )
        self._timeout_s = config.cluster.start_timeout_s

    def come_up(self) -> None:
        """Wait until all are ready. Raises ClusterError, or what kept one from starting."""
        wait_for(self._all(), self._timeout_s)

    def become(self, model: ModelConfig) -> None:
        """Look at another model of the same shape from now on: all processes stay, only weights change."""
        model = plain_model(model)
        result_of(self._grader.become.remote(load_tokenizer(model, "models")), "grader")
        for pool in (self._rollouts, self._measurers):
            pool.tell_all(lambda actor: actor.become.remote(model))

    def _all(self) -> list[Any]:
        return [self._grader, *self._rollouts.actors, *self._measurers.actors]

    def roll(self, prompts: Sequence[Prompt], spec: SamplingSpec, done: Told = nobody) -> list[Chunk]:
        """Answers to the prompts, in their order."""

        def call(actor: Any, piece: Sequence[Prompt]) -> Any:
            return actor.roll.options(num_returns=2).remote(list(piece), spec)

        return self._rollouts.spread(list(pieces_of(prompts, self._chunk)), call, done)

    def grade(
        self,
        chunks: Sequence[Chunk],
        *,
        seed: int,
        prompts: Mapping[str, str],
        references: Mapping[str, Sequence[str]],
        rule: str | None,
        file: Path,
    ) -> Graded:
        """Text scores of one seed's answers, which are also written to `file`."""
        call = self._grader.grade.remote(
            seed, prompts, references, rule, file, *[chunk.ref for chunk in chunks]
        )
        return result_of(call, "grader")

    def measure(self, chunks: Sequence[Chunk], *, compare: bool, done: Told = nobody) -> list[PassageMeasure]:
        """Exact figures at each token of the chunks' passages, in their order."""

        def call(actor: Any, chunk: Chunk) -> Any:
            return actor.measure.options(num_returns=2).remote(chunk.ref, compare)

        found = self._measurers.spread(chunks, call, done)
        return [one for chunk in found for one in ray.get(chunk.ref)]

    def choose(
        self, prompts: Sequence[Prompt], labels: Sequence[Ids], done: Told = nobody
    ) -> list[LabelLogprobs]:
        """Log-prob of each label behind each prompt."""

        def call(actor: Any, piece: Sequence[Prompt]) -> Any:
            return actor.choose.options(num_returns=2).remote(list(piece), list(labels))

        found = self._measurers.spread(list(pieces_of(prompts, self._chunk)), call, done)
        return [one for chunk in found for one in ray.get(chunk.ref)]

    def stop(self) -> None:
        """End every actor."""
        for actor in self._all():
            ray.kill(actor)


def eval_places(config: EvalConfig, *, samples: bool, reads: bool) -> list[Place]:
    """What the actors of an evaluation reserve: engines where answers are sampled, readers where it reads."""
    here = config.cluster
    threads = here.threads or os.cpu_count() or 1
    wanted: list[Place] = []
    if samples:
        wanted += [
            Place(name=f"rollout-{i}", role="rollout", cpus=here.rollout_cpus, gpus=here.rollout_gpus,
                  threads=threads)
            for i in range(config.engine.actors)
        ]  # fmt: skip
    if reads:
        wanted += [
            Place(name=f"measurer-{i}", role="measurer", cpus=here.teacher_cpus, gpus=here.teacher_gpus,
                  threads=threads)
            for i in range(config.scoring.actors)
        ]  # fmt: skip
    return wanted


@contextmanager
def eval_cast(
    config: EvalConfig, model: ModelConfig, vocabulary: int, *, samples: bool, reads: bool, compares: bool
) -> Iterator[EvalCast]:
    """The cast for the length of the block; its places are given back whatever happens."""
    reserved = Reservation(eval_places(config, samples=samples, reads=reads), config.cluster)
    try:
        players = EvalCast(config, model, vocabulary, reserved, compares)
        try:
            players.come_up()
            yield players
        finally:
            players.stop()
    finally:
        reserved.release()

"""The actors of a run: started in the space reserved for them, ready when this returns, gone at the end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from ...actors.grader import Graded
from ...actors.measurer import LabelLogprobs, PassageMeasure
from ...actors.text_sink import AnswerScore
from ...actors.workers import GraderActor, MeasurerActor, RolloutActor, TeacherActor, WriterActor
from ...common.config.eval import EvalConfig, plain_model
from ...common.config.run import ModelConfig, RunConfig
from ...common.errors import ClusterError, MinillmError
from ...common.metrics import Metrics
from ...common.process import peak_resident
from ...common.types import BatchSummary, Ids, Prompt, SamplingSpec, WeightVersion
from ...common.weights import WeightManifest
from ..models.inspect import load_tokenizer
from ..preflight.check import Plan
from ..training.collapse import MOST_STATES_GAP
from ..training.run_dir import RunFolder
from .learner_group import LearnerGroup
from .placement import Bundle, Reservation, bundles
from .pool import Chunk, Pool, chunked, result_of

Told = Callable[[BatchSummary], None]


def no_op(summary: BatchSummary) -> None:
    """Takes note of nothing."""


class WorkerGroup:
    """All roles of a run, by what the driver asks of them. Holds references, never tokens."""

    def __init__(self, config: RunConfig, plan: Plan, folder: RunFolder, reserved: Reservation):
        self._config = config
        self.states: str | None = config.teacher_server.hidden_dtype if config.reuses_states else None
        """The type of the states that mixed sampling is asked for; None: teacher actors read all answers."""
        self.states_gap: float | None = None
        """How far such states are from the teacher's own, once that is known."""
        self._writer: Any = WriterActor.options(**reserved.writer_options()).remote(
            "writer", plan.tokenizer, str(folder.rollouts)
        )
        self.learner = LearnerGroup(config, plan.vocabulary, lambda rank: reserved.options(f"learner-{rank}"))
        self._rollouts = Pool.of(
            [self._rollout(n, plan, reserved) for n in reserved.names("rollout")], "rollout"
        )
        self._teachers = Pool.of(
            [self._teacher(n, plan, reserved) for n in reserved.names("teacher")], "teacher"
        )

    def wait_ready(self) -> None:
        """Wait until all are ready. Raises ClusterError, or what kept one from starting."""
        wait_for(self._all(), self._config.cluster.start_timeout_s)
        self.learner.ready()
        if self._teachers.actors:
            self.learner.set_teacher_head(self._teachers.actors[0].head.remote())

    def _rollout(self, name: str, plan: Plan, reserved: Reservation) -> Any:
        config = self._config
        mixes = config.samples_answers and config.rollout.teacher_mix > 0
        return RolloutActor.options(**reserved.options(name)).remote(
            name,
            config.student,
            config.teacher if mixes else None,
            config.rollout,
            vocabulary=plan.vocabulary,
            max_tokens=plan.max_tokens,
            threads=reserved.threads(name),
        )

    def _teacher(self, name: str, plan: Plan, reserved: Reservation) -> Any:
        assert self._config.teacher is not None, "a teacher actor without a teacher"
        return TeacherActor.options(**reserved.options(name)).remote(
            name, self._config.teacher, self._config.teacher_server, plan.vocabulary, reserved.threads(name)
        )  # fmt: skip

    def _all(self) -> list[Any]:
        """Every actor but the learner's."""
        return [self._writer, *self._rollouts.actors, *self._teachers.actors]

    @property
    def lost(self) -> list[str]:
        """Names of actors that died and whose work others took over."""
        return self._rollouts.lost + self._teachers.lost

    def generate(self, prompts: Sequence[Prompt], spec: SamplingSpec, done: Told = no_op) -> list[Chunk]:
        """Answers to the prompts, in their order."""

        def call(actor: Any, piece: Sequence[Prompt]) -> Any:
            return actor.generate.options(num_returns=2).remote(list(piece), spec)

        chunks = self._rollouts.map(list(chunked(prompts, self._config.rollout.chunk)), call, done)
        return [replace(chunk, scored=spec.states is not None) for chunk in chunks]

    def score(
        self, chunks: Sequence[Chunk], *, hidden: bool, logprobs: bool, done: Told = no_op
    ) -> list[Chunk]:
        """The same passages as the teacher sees them; what mixed sampling has scored stays as it is."""
        known = [chunk for chunk in chunks if chunk.scored]
        if known and self.states_gap is None:
            asked = self._teachers.actors[0].states_gap.remote(known[0].ref)
            self.states_gap = gap = result_of(asked, self._teachers.names[0])
            self.states = self.states if gap <= MOST_STATES_GAP else None
        if self.states is None:
            known = []
        temperature = self._config.rollout.temperature if self._config.samples_answers else 1.0

        def call(actor: Any, chunk: Chunk) -> Any:
            return actor.score.options(num_returns=2).remote(
                chunk.ref, temperature, with_hidden=hidden, with_logprobs=logprobs
            )

        unknown = iter(self._teachers.map([c for c in chunks if c not in known], call, done))
        return [chunk if chunk in known else next(unknown) for chunk in chunks]

    def publish(self, version: WeightVersion) -> WeightManifest:
        """The learner's weights into the object store, with rollout actors fetching what is there."""
        return self.learner.publish(version, self._rollouts.actors)

    def load(self, manifest: WeightManifest) -> float:
        """New weights for every rollout actor; returns the slowest one's seconds."""
        loaded = self._rollouts.broadcast(lambda actor: actor.load.remote(manifest))
        return max((seconds for _, seconds in loaded), default=0.0)

    def write(self, number: int, version: int, scored: Sequence[Chunk]) -> Metrics:
        """Keep a set of answers as Parquet; returns its health signals."""
        call = self._writer.write.remote(number, version, *[chunk.ref for chunk in scored])
        return result_of(call, "writer")

    def text_scores(self, prompts: Sequence[Prompt], chunks: Sequence[Chunk]) -> list[AnswerScore]:
        """ROUGE-L and exact match of each answer."""
        references = {prompt.id: prompt.references for prompt in prompts}
        return result_of(self._writer.score.remote(references, *[chunk.ref for chunk in chunks]), "writer")

    def read(self, chunk: Chunk, most: int) -> list[tuple[str, int, str]]:
        """(prompt id, sample, text) of the first answers to the first `most` prompts of a chunk."""
        return result_of(self._writer.read.remote(chunk.ref, most), "writer")

    def peak_memory(self) -> dict[str, int]:
        """Most resident bytes of each process so far, this one included, by name."""
        names = ["writer", *self._rollouts.names, *self._teachers.names]
        held = ray.get([actor.__ray_call__.remote(peak_resident) for actor in self._all()])
        return self.learner.peak_memory() | dict(zip(names, held, strict=True)) | {"driver": peak_resident()}

    def stop(self) -> None:
        """End every actor."""
        self.learner.stop()
        for actor in self._all():
            ray.kill(actor)


def wait_for(actors: Sequence[Any], timeout_s: float) -> None:
    """Until all are ready. Raises ClusterError, or what kept one from starting."""
    try:
        ray.get([actor.ready.remote() for actor in actors], timeout=timeout_s)
    except GetTimeoutError as late:
        raise ClusterError(
            f"actors did not come up within cluster.start_timeout_s = {timeout_s:g};"
            " see their logs in Ray's dashboard, or raise it"
        ) from late
    except RayTaskError as failure:
        if isinstance(failure.cause, MinillmError):
            raise failure.cause from None
        raise ClusterError(f"an actor could not start: {failure}") from failure
    except RayActorError as death:
        raise ClusterError(f"an actor died while starting: {death}") from death


@contextmanager
def start_workers(config: RunConfig, plan: Plan, folder: RunFolder) -> Iterator[WorkerGroup]:
    """The cast for the length of the block; its places are given back whatever happens."""
    reserved = Reservation(bundles(config, os.cpu_count() or 1), config.cluster)
    try:
        workers = WorkerGroup(config, plan, folder, reserved)
        try:
            workers.wait_ready()
            yield workers
        finally:
            workers.stop()
    finally:
        reserved.release()


class EvalWorkerGroup:
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
                    name, model, teacher, config.teacher_server, vocabulary, reserved.threads(name)
                )
                for name in reserved.names("measurer")
            ],
            "measurer",
        )
        self._timeout_s = config.cluster.start_timeout_s

    def wait_ready(self) -> None:
        """Wait until all are ready. Raises ClusterError, or what kept one from starting."""
        wait_for(self._all(), self._timeout_s)

    def swap_model(self, model: ModelConfig) -> None:
        """Look at another model of the same shape from now on: all processes stay, only weights change."""
        model = plain_model(model)
        result_of(self._grader.swap_model.remote(load_tokenizer(model, "models")), "grader")
        for pool in (self._rollouts, self._measurers):
            pool.broadcast(lambda actor: actor.swap_model.remote(model))

    def _all(self) -> list[Any]:
        return [self._grader, *self._rollouts.actors, *self._measurers.actors]

    def generate(self, prompts: Sequence[Prompt], spec: SamplingSpec, done: Told = no_op) -> list[Chunk]:
        """Answers to the prompts, in their order."""

        def call(actor: Any, piece: Sequence[Prompt]) -> Any:
            return actor.generate.options(num_returns=2).remote(list(piece), spec)

        return self._rollouts.map(list(chunked(prompts, self._chunk)), call, done)

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

    def measure(self, chunks: Sequence[Chunk], *, compare: bool, done: Told = no_op) -> list[PassageMeasure]:
        """Exact figures at each token of the chunks' passages, in their order."""

        def call(actor: Any, chunk: Chunk) -> Any:
            return actor.measure.options(num_returns=2).remote(chunk.ref, compare)

        found = self._measurers.map(chunks, call, done)
        return [one for chunk in found for one in ray.get(chunk.ref)]

    def choose(
        self, prompts: Sequence[Prompt], labels: Sequence[Ids], done: Told = no_op
    ) -> list[LabelLogprobs]:
        """Log-prob of each label behind each prompt."""

        def call(actor: Any, piece: Sequence[Prompt]) -> Any:
            return actor.choose.options(num_returns=2).remote(list(piece), list(labels))

        found = self._measurers.map(list(chunked(prompts, self._chunk)), call, done)
        return [one for chunk in found for one in ray.get(chunk.ref)]

    def stop(self) -> None:
        """End every actor."""
        for actor in self._all():
            ray.kill(actor)


def eval_bundles(config: EvalConfig, *, samples: bool, reads: bool) -> list[Bundle]:
    """What the actors of an evaluation reserve: engines where answers are sampled, readers where it reads."""
    here = config.cluster
    threads = here.threads or os.cpu_count() or 1
    wanted: list[Bundle] = []
    if samples:
        wanted += [
            Bundle(name=f"rollout-{i}", role="rollout", cpus=here.rollout_cpus, gpus=here.rollout_gpus,
                  threads=threads)
            for i in range(config.engine.num_engines)
        ]  # fmt: skip
    if reads:
        wanted += [
            Bundle(name=f"measurer-{i}", role="measurer", cpus=here.teacher_cpus, gpus=here.teacher_gpus,
                  threads=threads)
            for i in range(config.teacher_server.num_actors)
        ]  # fmt: skip
    return wanted


@contextmanager
def start_eval_workers(
    config: EvalConfig, model: ModelConfig, vocabulary: int, *, samples: bool, reads: bool, compares: bool
) -> Iterator[EvalWorkerGroup]:
    """The cast for the length of the block; its places are given back whatever happens."""
    reserved = Reservation(eval_bundles(config, samples=samples, reads=reads), config.cluster)
    try:
        workers = EvalWorkerGroup(config, model, vocabulary, reserved, compares)
        try:
            workers.wait_ready()
            yield workers
        finally:
            workers.stop()
    finally:
        reserved.release()

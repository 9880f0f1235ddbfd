"""The actors of a run, an evaluation or a generation: started together in reserved space, ended together.

Groups hold references, never tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import ray

from ...actors.text_sink import AnswerScore, SeedScores
from ...actors.workers import MeasurerActor, RolloutActor, TeacherActor, TextSinkActor
from ...common.config.eval import EvalConfig, plain_model
from ...common.config.run import ClusterConfig, EngineConfig, ModelConfig, RunConfig
from ...common.metrics import MOST_STATES_GAP, Metrics
from ...common.process import ProcessFacts, peak_resident
from ...common.types import BatchSummary, Ids, Passage, Prompt, SamplingSpec, WeightVersion
from ...common.weights import WeightManifest
from .learner_group import LearnerGroup
from .placement import Bundle, Reservation, bundles, check_folder_seen, engine_bundles, eval_bundles
from .pool import Chunk, Pool, chunked, facts_of, result_of
from .probes import ProbeLogprobs
from .ray_compat import call_inside

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from ...actors.answer_files import Question
    from ...actors.measurer import LabelLogprobs, PassageMeasure

Done = Callable[[BatchSummary], None]
"""Called with the sizes of each piece of work as it finishes."""
Group = TypeVar("Group", bound="ActorGroup")


def no_op(summary: BatchSummary) -> None:
    """Takes note of nothing."""


class ActorGroup:
    """What all groups share: a text sink, engines that answer prompts, and one start and end."""

    def __init__(
        self, reserved: Reservation, cluster: ClusterConfig, engine: EngineConfig, tokenizer: Tokenizer
    ):
        self.facts: list[ProcessFacts] = []
        """About each actor's process, from the time when it became ready."""
        self._reserved, self._cluster, self._engine = reserved, cluster, engine
        self._pools: list[Pool] = []
        self._dtypes: dict[str, str] = {"rollout": engine.dtype}
        self._sink: Any = TextSinkActor.options(**reserved.writer_options()).remote("writer", tokenizer)
        self._rollouts = Pool([], [], [])

    def _start_pool(self, role: str, start: Callable[[str, dict[str, Any]], Any]) -> Pool:
        """Actors of a role; `start(name, options)` makes one."""
        names = self._reserved.names(role)
        pool = Pool.of([start(name, self._reserved.options(name)) for name in names], role)
        self._pools.append(pool)
        return pool

    def _start_engines(
        self, student: ModelConfig, teacher: ModelConfig | None, *, vocabulary: int, max_tokens: int
    ) -> None:
        def start(name: str, options: dict[str, Any]) -> Any:
            return RolloutActor.options(**options).remote(
                name,
                student,
                teacher,
                self._engine,
                vocabulary=vocabulary,
                max_tokens=max_tokens,
                threads=self._reserved.threads(name),
            )

        self._rollouts = self._start_pool("rollout", start)

    def _actors(self) -> list[Any]:
        """Every actor that this class started."""
        return [self._sink, *(actor for pool in self._pools for actor in pool.actors)]

    @property
    def lost(self) -> list[str]:
        """Names of actors that died and whose work others took over."""
        return [name for pool in self._pools for name in pool.lost]

    def wait_ready(self) -> None:
        """Wait until all are ready. Raises ClusterError, or what kept one from starting."""
        self.facts = facts_of(self._actors(), self._cluster.start_timeout_s)

    def generate(self, prompts: Sequence[Prompt], spec: SamplingSpec, done: Done = no_op) -> list[Chunk]:
        """Answers to the prompts, in their order."""

        def call(actor: Any, piece: Sequence[Prompt]) -> Any:
            return actor.generate.options(num_returns=2).remote(list(piece), spec)

        chunks = self._rollouts.map(list(chunked(prompts, self._engine.chunk)), call, done)
        return [replace(chunk, scored=spec.states is not None) for chunk in chunks]

    def readings(self, passages: Sequence[Passage]) -> list[ProbeLogprobs]:
        """What every process that holds a model says of the same given answers."""
        calls = {
            name: (actor.read.remote(list(passages)), self._dtypes[name.rpartition("-")[0]])
            for pool in self._pools
            for name, actor in zip(pool.names, pool.actors, strict=True)
        }
        return [
            ProbeLogprobs(process=name, model=model, dtype=dtype, logprobs=logprobs)
            for name, (call, dtype) in calls.items()
            for model, logprobs in result_of(call, name).items()
        ]

    def stop(self) -> None:
        """End every actor."""
        for actor in self._actors():
            ray.kill(actor)


class WorkerGroup(ActorGroup):
    """All roles of a run, by what the driver asks of them."""

    def __init__(
        self, reserved: Reservation, config: RunConfig, rollouts: Path, tokenizer: Tokenizer, *,
        vocabulary: int, max_tokens: int,
    ):  # fmt: skip
        """`rollouts`: the folder of the files of answers; `max_tokens`: of a prompt and its answer."""
        student, teacher = config.student, config.teacher
        super().__init__(reserved, config.cluster, config.rollout, tokenizer)
        self._config, self._folder = config, rollouts
        self.states: str | None = config.teacher_server.hidden_dtype if config.reuses_states else None
        """The type of the states that mixed sampling is asked for; None: teacher actors read all answers."""
        self.states_gap: float | None = None
        """How far such states are from the teacher's own, once that is known."""
        self.learner = LearnerGroup(config, vocabulary, lambda rank: reserved.options(f"learner-{rank}"))
        mixed = teacher if config.mixes_teacher else None
        self._start_engines(student, mixed, vocabulary=vocabulary, max_tokens=max_tokens)

        def start_teacher(name: str, options: dict[str, Any]) -> Any:
            assert teacher is not None, "a teacher actor without a teacher"
            return TeacherActor.options(**options).remote(
                name, teacher, config.teacher_server, vocabulary, reserved.threads(name)
            )

        self._dtypes["teacher"] = config.teacher_server.dtype
        self._teachers = self._start_pool("teacher", start_teacher)

    def wait_ready(self) -> None:
        """Wait until all are ready. Raises ClusterError, or what kept one from starting."""
        super().wait_ready()
        self.facts += self.learner.ready()
        if self._teachers.actors:
            self.learner.set_teacher_head(self._teachers.actors[0].head.remote())

    def score(
        self, chunks: Sequence[Chunk], *, hidden: bool, logprobs: bool, done: Done = no_op
    ) -> list[Chunk]:
        """The same passages as the teacher sees them; what mixed sampling has scored stays as it is."""
        known = [chunk for chunk in chunks if chunk.scored]
        if known and self.states_gap is None:
            self.states_gap = gap = self._teachers.ask_one(
                lambda actor: actor.states_gap.remote(known[0].ref)
            )
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
        """Write a set of answers as rollouts/set-NNNNN.parquet; returns its health signals."""
        file = self._folder / f"set-{number:05d}.parquet"
        call = self._sink.write_set.remote(file, number, version, *[chunk.ref for chunk in scored])
        return result_of(call, "writer")

    def text_scores(self, prompts: Sequence[Prompt], chunks: Sequence[Chunk]) -> list[AnswerScore]:
        """ROUGE-L and exact match of each answer."""
        references = {prompt.id: prompt.references for prompt in prompts}
        return result_of(self._sink.score.remote(references, *[chunk.ref for chunk in chunks]), "writer")

    def read(self, chunk: Chunk, most: int) -> list[tuple[str, int, str]]:
        """(prompt id, sample, text) of the first answers to the first `most` prompts of a chunk."""
        return result_of(self._sink.examples.remote(chunk.ref, most), "writer")

    def peak_memory(self) -> dict[str, int]:
        """Most resident bytes of each process that lives, this one included, by name.

        It is asked when all work is done: an actor that died idle is named in `lost`, and ends no run.
        """
        found = self.learner.peak_memory()
        for pool in (Pool([self._sink], ["writer"], []), *self._pools):
            found |= pool.ask_living(lambda actor: call_inside(actor, peak_resident))
        return found | {"driver": peak_resident()}

    def readings(self, passages: Sequence[Passage]) -> list[ProbeLogprobs]:
        """What every process that holds a model says of the same given answers, learner ranks too."""
        ranks = self.learner.read(passages)
        dtype = self._config.learner.dtype
        own = [
            ProbeLogprobs(process=name, model="student", dtype=dtype, logprobs=found)
            for name, found in ranks.items()
        ]
        return [*super().readings(passages), *own]

    def stop(self) -> None:
        """End every actor."""
        self.learner.stop()
        super().stop()


class EvalWorkerGroup(ActorGroup):
    """All roles of an evaluation, for one model at a time."""

    def __init__(
        self, reserved: Reservation, config: EvalConfig, model: ModelConfig, tokenizer: Tokenizer,
        vocabulary: int, compares: bool,
    ):  # fmt: skip
        """`compares`: whether the model is compared with the teacher."""
        teacher = plain_model(config.teacher) if compares and config.teacher else None
        model = plain_model(model)
        super().__init__(reserved, config.cluster, config.engine, tokenizer)
        self._start_engines(model, teacher, vocabulary=vocabulary, max_tokens=config.max_tokens)

        def start_measurer(name: str, options: dict[str, Any]) -> Any:
            return MeasurerActor.options(**options).remote(
                name, model, teacher, config.teacher_server, vocabulary, reserved.threads(name)
            )

        self._dtypes["measurer"] = config.teacher_server.dtype
        self._measurers = self._start_pool("measurer", start_measurer)

    def swap_model(self, model: ModelConfig, tokenizer: Tokenizer) -> None:
        """Evaluate another model of the same shape from now on: processes stay, only weights change."""
        model = plain_model(model)
        result_of(self._sink.swap_model.remote(tokenizer), "writer")
        for pool in self._pools:
            pool.broadcast(lambda actor: actor.swap_model.remote(model))

    def write_answers(
        self,
        file: Path,
        chunks: Sequence[Chunk],
        *,
        seed: int,
        prompts: Mapping[str, str],
        references: Mapping[str, Sequence[str]],
        rule: str | None,
    ) -> SeedScores:
        """Text scores of one seed's answers, which are also written to `file`."""
        call = self._sink.write_answers.remote(
            file, seed, prompts, references, rule, *[chunk.ref for chunk in chunks]
        )
        return result_of(call, "writer")

    def measure(self, chunks: Sequence[Chunk], *, compare: bool, done: Done = no_op) -> list[PassageMeasure]:
        """Exact figures at each token of the chunks' passages, in their order."""

        def call(actor: Any, chunk: Chunk) -> Any:
            return actor.measure.options(num_returns=2).remote(chunk.ref, compare)

        found = self._measurers.map(chunks, call, done)
        return [one for chunk in found for one in ray.get(chunk.ref)]

    def choose(
        self, prompts: Sequence[Prompt], labels: Sequence[Ids], done: Done = no_op
    ) -> list[LabelLogprobs]:
        """Log-prob of each label behind each prompt."""

        def call(actor: Any, piece: Sequence[Prompt]) -> Any:
            return actor.choose.options(num_returns=2).remote(list(piece), list(labels))

        found = self._measurers.map(list(chunked(prompts, self._engine.chunk)), call, done)
        return [one for chunk in found for one in ray.get(chunk.ref)]


class GenerateWorkerGroup(ActorGroup):
    """Engines and a text sink that turn prompts into parts of a data set."""

    def __init__(
        self, reserved: Reservation, model: ModelConfig, tokenizer: Tokenizer, engine: EngineConfig,
        cluster: ClusterConfig, *, vocabulary: int, max_tokens: int,
    ):  # fmt: skip
        """`max_tokens`: of a prompt and its answer."""
        super().__init__(reserved, cluster, engine, tokenizer)
        self._start_engines(model, None, vocabulary=vocabulary, max_tokens=max_tokens)

    def write_parts(
        self,
        folder: Path,
        pieces: Sequence[range],
        prompts: Sequence[Prompt],
        questions_of: Callable[[Sequence[Prompt]], Mapping[str, Question]],
        spec: SamplingSpec,
        done: Done = no_op,
    ) -> None:
        """Answer the prompts with these numbers, each piece written as a part below `folder`."""

        def call(actor: Any, piece: range) -> tuple[Any, Any]:
            asked = list(prompts[piece.start : piece.stop])
            answers, summary = actor.generate.options(num_returns=2).remote(asked, spec)
            # What stays is the sink's count: the answers leave the object store once it has written them.
            return self._sink.write_part.remote(folder, piece.start, questions_of(asked), answers), summary

        for chunk in self._rollouts.map(pieces, call, done):
            result_of(chunk.ref, "writer")


@contextmanager
def start_workers(
    config: RunConfig, rollouts: Path, tokenizer: Tokenizer, *, vocabulary: int, max_tokens: int
) -> Iterator[WorkerGroup]:
    """The actors of a run for the length of the block; see WorkerGroup."""
    with _started(
        bundles(config),
        config.cluster,
        lambda reserved: WorkerGroup(
            reserved, config, rollouts, tokenizer, vocabulary=vocabulary, max_tokens=max_tokens
        ),
    ) as workers:
        yield workers


@contextmanager
def start_eval_workers(
    config: EvalConfig, model: ModelConfig, tokenizer: Tokenizer, vocabulary: int, *,
    samples: bool, reads: bool, compares: bool,
) -> Iterator[EvalWorkerGroup]:  # fmt: skip
    """The actors of an evaluation for the length of the block; see EvalWorkerGroup."""
    with _started(
        eval_bundles(config, samples=samples, reads=reads),
        config.cluster,
        lambda reserved: EvalWorkerGroup(reserved, config, model, tokenizer, vocabulary, compares),
    ) as workers:
        yield workers


@contextmanager
def start_generate_workers(
    model: ModelConfig, tokenizer: Tokenizer, engine: EngineConfig, cluster: ClusterConfig, *,
    vocabulary: int, max_tokens: int,
) -> Iterator[GenerateWorkerGroup]:  # fmt: skip
    """The actors of a generation for the length of the block; see GenerateWorkerGroup."""
    with _started(
        engine_bundles(engine, cluster),
        cluster,
        lambda reserved: GenerateWorkerGroup(
            reserved, model, tokenizer, engine, cluster, vocabulary=vocabulary, max_tokens=max_tokens
        ),
    ) as workers:
        yield workers


@contextmanager
def _started(
    wanted: Sequence[Bundle], settings: ClusterConfig, make: Callable[[Reservation], Group]
) -> Iterator[Group]:
    """A group in space reserved for it, ready; actors and space are given back whatever happens."""
    reserved = Reservation(wanted, settings)
    try:
        workers = make(reserved)
        try:
            workers.wait_ready()
            check_folder_seen(workers.facts, settings)
            yield workers
        finally:
            workers.stop()
    finally:
        reserved.release()

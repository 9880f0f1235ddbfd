"""The Ray actors that run models forward and write text: thin shells around cores that know no Ray.

Make one, call `ready` first and once, then its other methods. Constructors only keep what they are given,
since Ray turns what is raised there into text.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from ..common.config.run import EngineConfig, ModelConfig, TeacherServerConfig
from ..common.logs import EventLog, LogTarget, quiet_libraries, setup_logging
from ..common.metrics import Metrics
from ..common.process import ProcessFacts, collector_paused, use_threads
from ..common.types import (
    BatchSummary,
    Floats,
    Ids,
    Passage,
    Prompt,
    Rollout,
    SamplingSpec,
    Scored,
    WeightVersion,
    answer_names,
    sample_of,
)
from ..common.weights import WeightManifest
from .answer_files import Question
from .sampler import Sampler
from .text_sink import AnswerScore, SeedScores, TextSink

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .measurer import LabelLogprobs, Measurer, PassageMeasure
    from .scorer import Scorer


log = EventLog(__name__)


class Worker:
    """What all of them share: a name, a log, and facts about their process.

    `threads` of those that compute: None = all cores of the machine on which the actor runs.
    """

    libraries: tuple[str, ...] = ()
    """Those whose versions are among the facts."""

    def __init__(self, name: str):
        self._name = name
        self._sees_run_dir = setup_logging(LogTarget.of_process(), name)

    def __repr__(self) -> str:
        return self._name

    def ready(self) -> ProcessFacts:
        """Load what this worker works with; facts for the log. Raises ModelError or ConfigError."""
        start = time.perf_counter()
        self._load()
        quiet_libraries()
        facts = ProcessFacts.gather(
            self._name,
            node=ray.util.get_node_ip_address(),
            start_s=time.perf_counter() - start,
            sees_run_dir=self._sees_run_dir,
            libraries=self.libraries,
        )
        log.event("ready", facts=asdict(facts))
        return facts

    def _load(self) -> None:
        """Whatever takes time."""


@ray.remote(max_restarts=0)  # a lost actor has lost its weights: the driver decides what that means
class RolloutActor(Worker):
    """Answers prompts by a `Sampler`. Call `generate` with `num_returns=2`: the driver gets no answers."""

    libraries = ("torch", "vllm")

    def __init__(
        self,
        name: str,
        student: ModelConfig,
        teacher: ModelConfig | None,
        settings: EngineConfig,
        *,
        vocabulary: int,
        max_tokens: int,
        threads: int | None = None,
    ):
        super().__init__(name)
        self._student, self._teacher, self._settings = student, teacher, settings
        self._vocabulary, self._max_tokens, self._threads = vocabulary, max_tokens, threads

    def _load(self) -> None:
        from .vllm_engine import VllmEngine, local_folder

        self._engine = VllmEngine(
            local_folder(self._student),
            local_folder(self._teacher) if self._teacher else None,
            self._settings,
            vocabulary=self._vocabulary,
            max_tokens=self._max_tokens,
            threads=use_threads(self._threads),
        )
        self._sampler = Sampler(self._engine, fetch=ray.get)

    def generate(
        self, prompts: Sequence[Prompt], spec: SamplingSpec
    ) -> tuple[list[Rollout] | list[Scored], BatchSummary]:
        """See Sampler.generate."""
        answers, summary = self._sampler.generate(prompts, spec)
        _log_batch("drew", summary, version=self._sampler.version)
        for drop in summary.dropped:
            log.event("dropped", ids=[drop.prompt_id], reason=drop.reason, detail=drop.detail)
        return answers, summary

    def prefetch(self, version: WeightVersion, refs: Sequence[Any]) -> None:
        """See Sampler.prefetch."""
        self._sampler.prefetch(version, refs)

    def load(self, manifest: WeightManifest) -> tuple[int, float]:
        """See Sampler.load."""
        version, seconds = self._sampler.load(manifest)
        log.event("weights loaded", version=version, seconds=round(seconds, 3))
        return version, seconds

    def swap_model(self, student: ModelConfig) -> None:
        """See VllmEngine.swap_model."""
        from .vllm_engine import local_folder

        self._engine.swap_model(local_folder(student))

    def read(self, passages: Sequence[Passage]) -> dict[str, list[Floats]]:
        """By model: log-probs [T] of given answers at temperature 1, as sampling computes them."""
        mixed = self._teacher is not None
        read = self._engine.read(passages, 0.5 if mixed else 0.0)
        found = {"student": [one.student_logprobs for one in read]}
        if mixed:
            found["teacher"] = [
                one.mixed_teacher_logprobs for one in read if one.mixed_teacher_logprobs is not None
            ]
        return found

    def teacher_checksum(self) -> int | None:
        """See VllmEngine.teacher_checksum."""
        return self._engine.teacher_checksum()


@ray.remote(max_restarts=0)  # the driver decides what a lost actor means; others take over its work
class TeacherActor(Worker):
    """Scores by a `Scorer`. Call `score` with `num_returns=2`: the driver gets no hidden states."""

    libraries = ("torch", "transformers")

    def __init__(
        self,
        name: str,
        teacher: ModelConfig,
        settings: TeacherServerConfig,
        vocabulary: int,
        threads: int | None = None,
    ):
        super().__init__(name)
        self._teacher, self._settings = teacher, settings
        self._vocabulary, self._threads = vocabulary, threads

    def _load(self) -> None:
        threads = use_threads(self._threads)
        with collector_paused():  # heavy: only this process needs it
            from .scorer import Scorer

        _set_threads(threads)
        self._scorer: Scorer = Scorer.load(
            self._teacher.path, self._teacher.revision, self._settings, self._vocabulary
        )

    def head(self) -> dict[str, Any]:
        """See Scorer.head; the caller keeps the reference, one copy stays in the object store."""
        return self._scorer.head()

    def states_gap(self, given: Sequence[Scored]) -> float:
        """See Scorer.states_gap, of the first."""
        return self._scorer.states_gap(given[0])

    def read(self, passages: Sequence[Passage]) -> dict[str, list[Floats]]:
        """By model: log-probs [T] of given answers at temperature 1."""
        scored, _ = self._scorer.score(passages, temperature=1.0, with_hidden=False)
        return {"teacher": [one.teacher_logprobs for one in scored if one.teacher_logprobs is not None]}

    def score(
        self,
        passages: Sequence[Passage | Scored],
        temperature: float,
        *,
        with_hidden: bool,
        with_logprobs: bool,
    ) -> tuple[list[Scored], BatchSummary]:
        """See Scorer.score; what another one has scored is scored again."""
        plain = [one.passage if isinstance(one, Scored) else one for one in passages]
        scored, summary = self._scorer.score(
            plain, temperature=temperature, with_hidden=with_hidden, with_logprobs=with_logprobs
        )
        _log_batch("scored", summary)
        return scored, summary


@ray.remote(max_restarts=0)  # others take over its work; nothing but time is lost with it
class MeasurerActor(Worker):
    """Measures by a `Measurer`. Call `measure` and `choose` with `num_returns=2`."""

    libraries = ("torch", "transformers")

    def __init__(
        self,
        name: str,
        model: ModelConfig,
        teacher: ModelConfig | None,
        settings: TeacherServerConfig,
        vocabulary: int,
        threads: int | None = None,
    ):
        super().__init__(name)
        self._model, self._teacher, self._settings = model, teacher, settings
        self._vocabulary, self._threads = vocabulary, threads

    def _load(self) -> None:
        threads = use_threads(self._threads)
        with collector_paused():  # heavy: only this process needs it
            from .measurer import Measurer

        _set_threads(threads)
        self._measurer: Measurer = Measurer.load(self._model, self._teacher, self._settings, self._vocabulary)

    def swap_model(self, model: ModelConfig) -> None:
        """Measure another model from now on, against the same teacher. Raises ModelError."""
        from .scorer import load_model

        self._measurer.swap_model(load_model(model.path, model.revision, self._settings.dtype, "student"))

    def measure(
        self, passages: Sequence[Passage], compare: bool
    ) -> tuple[list[PassageMeasure], BatchSummary]:
        """See Measurer.measure."""
        measured, summary = self._measurer.measure(passages, compare=compare)
        _log_batch("measured", summary)
        return measured, summary

    def read(self, passages: Sequence[Passage]) -> dict[str, list[Floats]]:
        """By model: log-probs [T] of given answers at temperature 1."""
        read, _ = self._measurer.measure(passages)
        found = {"student": [one.logprobs for one in read]}
        if self._teacher is not None:
            found["teacher"] = [one.teacher_logprobs for one in read if one.teacher_logprobs is not None]
        return found

    def choose(
        self, prompts: Sequence[Prompt], labels: Sequence[Ids]
    ) -> tuple[list[LabelLogprobs], BatchSummary]:
        """See Measurer.choose."""
        return self._measurer.choose(prompts, labels)


@ray.remote(max_restarts=0)
class TextSinkActor(Worker):
    """Scores and writes answers by a `TextSink`; chunks of them arrive through the object store.

    The tokenizer comes as an object: one that is read here would bring torch with it, seconds and 400 MB.
    """

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerBase):
        super().__init__(name)
        self._sink = TextSink(tokenizer)

    def swap_model(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Decode another model's answers from now on."""
        self._sink = TextSink(tokenizer)

    def score(self, references: Mapping[str, Sequence[str]], *chunks: Sequence[Rollout]) -> list[AnswerScore]:
        """See TextSink.score."""
        return self._sink.score(_joined(chunks), references)

    def write_set(self, file: Path, number: int, version: int, *chunks: Sequence[Scored]) -> Metrics:
        """See TextSink.write_set."""
        scored = _joined(chunks)
        metrics = self._sink.write_set(file, number, scored, version)
        passages = [one.passage for one in scored]
        names = answer_names([p.prompt_id for p in passages], map(sample_of, passages))
        log.event("wrote", file=file.name, set=number, ids=names)
        return metrics

    def write_answers(
        self,
        file: Path,
        seed: int,
        prompts: Mapping[str, str],
        references: Mapping[str, Sequence[str]],
        rule: str | None,
        *chunks: Sequence[Rollout],
    ) -> SeedScores:
        """See TextSink.write_answers."""
        return self._sink.write_answers(
            file, _joined(chunks), seed=seed, prompts=prompts, references=references, rule=rule
        )

    def write_part(
        self, folder: Path, first: int, questions: Mapping[str, Question], rollouts: Sequence[Rollout]
    ) -> int:
        """See TextSink.write_part."""
        return self._sink.write_part(folder, first, questions, rollouts)

    def examples(self, rollouts: Sequence[Rollout], most: int) -> list[tuple[str, int, str]]:
        """See TextSink.examples."""
        return self._sink.examples(rollouts, most)


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _ids_of(summary: BatchSummary) -> list[str]:
    return answer_names(summary.prompt_ids, summary.samples)


def _log_batch(event: str, summary: BatchSummary, **fields: Any) -> None:
    tokens, seconds = sum(summary.answer_tokens), round(summary.seconds, 3)
    log.event(event, ids=_ids_of(summary), tokens=tokens, seconds=seconds, **fields)


def _joined(chunks: Sequence[Sequence[Any]]) -> list[Any]:
    return [one for chunk in chunks for one in chunk]

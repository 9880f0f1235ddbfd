"""One vLLM engine in one Ray process."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from ..common.config.run import EngineConfig, ModelConfig, TeacherServerConfig
from ..common.process import collector_paused
from ..common.types import BatchSummary, Ids, Passage, Prompt, Rollout, SamplingSpec, Scored, WeightVersion
from ..common.weights import WeightManifest
from .grader import Graded, Grader
from .hub import local_folder
from .sampler import Sampler
from .text_sink import Decodes

if TYPE_CHECKING:
    from .measurer import LabelLogprobs, Measurer, PassageMeasure


from typing import TYPE_CHECKING

from .answer_parts import Joined, PartsWriter, Question, join

if TYPE_CHECKING:
    from .scorer import Scorer


from ..common.metrics import Metrics
from .text_sink import AnswerScore, Writer


@ray.remote(max_restarts=0)  # a lost actor has lost its weights: the driver decides what that means
class RolloutActor:
    """A mailbox around `Sampler`. Call `generate` with `num_returns=2`: answers stay away from the driver."""

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
        self._name = name
        self._student, self._teacher, self._settings = student, teacher, settings
        self._vocabulary, self._max_tokens, self._threads = vocabulary, max_tokens, threads

    def __repr__(self) -> str:
        return self._name

    def ready(self) -> dict[str, int | float | str]:
        """Start the engine; facts for the log once it is up. Call it first, once.

        Raises ModelError or ConfigError (what is raised while an actor is made would come out as text).
        """
        start = time.perf_counter()
        from .vllm_engine import VllmEngine

        self._engine = VllmEngine(
            local_folder(self._student),
            local_folder(self._teacher) if self._teacher else None,
            self._settings,
            vocabulary=self._vocabulary,
            max_tokens=self._max_tokens,
            threads=self._threads,
        )
        self._sampler = Sampler(self._engine, fetch=ray.get)
        import torch
        import vllm  # only now: the engine settles first how it is imported

        return {
            "name": self._name,
            "pid": os.getpid(),
            "start_s": time.perf_counter() - start,
            "weight_version": int(self._sampler.version),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "vllm": vllm.__version__,
        }

    def generate(
        self, prompts: Sequence[Prompt], spec: SamplingSpec
    ) -> tuple[list[Rollout] | list[Scored], BatchSummary]:
        """See Sampler.generate."""
        return self._sampler.generate(prompts, spec)

    def prefetch(self, version: WeightVersion, refs: Sequence[Any]) -> None:
        """See Sampler.prefetch."""
        self._sampler.prefetch(version, refs)

    def load(self, manifest: WeightManifest) -> tuple[int, float]:
        """See Sampler.load."""
        return self._sampler.load(manifest)

    def swap_model(self, student: ModelConfig) -> None:
        """See VllmEngine.swap_model."""
        self._engine.swap_model(local_folder(student))

    def teacher_checksum(self) -> int | None:
        """crc32 of the teacher inside the engine; no update may change it. None without a teacher."""
        return self._engine.teacher_checksum()


@ray.remote(max_restarts=0)
class GraderActor:
    """A mailbox in front of `Grader`; answers arrive through the object store, as does the tokenizer."""

    def __init__(self, name: str, tokenizer: Decodes):
        self._name = name
        self._grader = Grader(tokenizer)

    def __repr__(self) -> str:
        return self._name

    def ready(self) -> str:
        """Answers once this process runs."""
        return self._name

    def swap_model(self, tokenizer: Decodes) -> None:
        """Read another model's answers from now on."""
        self._grader = Grader(tokenizer)

    def grade(
        self,
        seed: int,
        prompts: Mapping[str, str],
        references: Mapping[str, Sequence[str]],
        rule: str | None,
        file: Path,
        *chunks: Sequence[Rollout],
    ) -> Graded:
        """See Grader.grade."""
        rollouts = [rollout for chunk in chunks for rollout in chunk]
        return self._grader.grade(
            rollouts, seed=seed, prompts=prompts, references=references, rule=rule, file=file
        )


@ray.remote(max_restarts=0)  # others take over its work; nothing but time is lost with it
class MeasurerActor:
    """A mailbox around `Measurer`. Call `measure` and `choose` with `num_returns=2`."""

    def __init__(
        self,
        name: str,
        model: ModelConfig,
        teacher: ModelConfig | None,
        settings: TeacherServerConfig,
        vocabulary: int,
        threads: int | None = None,
    ):
        self._name, self._model, self._teacher, self._settings = name, model, teacher, settings
        self._vocabulary, self._threads = vocabulary, threads

    def __repr__(self) -> str:
        return self._name

    def ready(self) -> dict[str, int | str]:
        """Load the models; facts for the log once they stand. Call it first, once. Raises ModelError."""
        with collector_paused():  # heavy: only this process needs it
            import torch

            from .measurer import Measurer

        if self._threads is not None:
            torch.set_num_threads(self._threads)
        self._measurer: Measurer = Measurer.load(self._model, self._teacher, self._settings, self._vocabulary)
        return {"name": self._name, "pid": os.getpid()}

    def swap_model(self, model: ModelConfig) -> None:
        """Read with another model from now on, beside the same teacher. Raises ModelError."""
        from .scorer import load_model

        self._measurer.swap_model(load_model(model.path, model.revision, self._settings.dtype, "student"))

    def measure(
        self, passages: Sequence[Passage], compare: bool
    ) -> tuple[list[PassageMeasure], BatchSummary]:
        """See Measurer.measure."""
        return self._measurer.measure(passages, compare=compare)

    def choose(
        self, prompts: Sequence[Prompt], labels: Sequence[Ids]
    ) -> tuple[list[LabelLogprobs], BatchSummary]:
        """See Measurer.choose."""
        return self._measurer.choose(prompts, labels)


@ray.remote(max_restarts=0)
class PartsActor:
    """A mailbox in front of `PartsWriter`; the tokenizer comes as an object."""

    def __init__(self, name: str, tokenizer: Decodes, folder: str):
        self._name, self._folder = name, Path(folder)
        self._writer = PartsWriter(tokenizer, self._folder)

    def __repr__(self) -> str:
        return self._name

    def ready(self) -> str:
        """Answers once this process runs."""
        return self._name

    def write(self, first: int, questions: Mapping[str, Question], rollouts: Sequence[Rollout]) -> int:
        """See PartsWriter.write; answers arrive through the object store."""
        return self._writer.write(first, questions, rollouts)

    def join(self, keep_cut: bool) -> Joined:
        """See answer_parts.join."""
        return join(self._folder, keep_cut=keep_cut)


@ray.remote(max_restarts=0)  # a lost actor is for the driver to judge; others take over its work
class TeacherActor:
    """A mailbox around `Scorer`. Call `score` with `num_returns=2`: hidden states never meet the driver."""

    def __init__(
        self,
        name: str,
        teacher: ModelConfig,
        settings: TeacherServerConfig,
        vocabulary: int,
        threads: int | None = None,
    ):
        self._name, self._teacher, self._settings = name, teacher, settings
        self._vocabulary, self._threads = vocabulary, threads

    def __repr__(self) -> str:
        return self._name

    def ready(self) -> dict[str, int | str]:
        """Load the teacher; facts for the log once it stands. Call it first, once. Raises ModelError."""
        with collector_paused():  # heavy: only this process needs it
            import torch

            from .scorer import Scorer

        if self._threads is not None:
            torch.set_num_threads(self._threads)
        self._scorer: Scorer = Scorer.load(
            self._teacher.path, self._teacher.revision, self._settings, self._vocabulary
        )
        return {"name": self._name, "pid": os.getpid()}

    def head(self) -> dict[str, Any]:
        """See Scorer.head; the caller keeps the reference, one copy stands in the object store."""
        return self._scorer.head()

    def states_gap(self, given: Sequence[Scored]) -> float:
        """See Scorer.states_gap, of the first."""
        return self._scorer.states_gap(given[0])

    def score(
        self,
        passages: Sequence[Passage | Scored],
        temperature: float,
        *,
        with_hidden: bool,
        with_logprobs: bool,
    ) -> tuple[list[Scored], BatchSummary]:
        """See Scorer.score; what has been scored by another is scored anew."""
        unread = [one.passage if isinstance(one, Scored) else one for one in passages]
        return self._scorer.score(
            unread, temperature=temperature, with_hidden=with_hidden, with_logprobs=with_logprobs
        )


@ray.remote(max_restarts=0)
class WriterActor:
    """A mailbox in front of `Writer`.

    The tokenizer comes as an object: one that is read here would bring torch with it, seconds and 400 MB.
    """

    def __init__(self, name: str, tokenizer: Decodes, folder: str):
        self._name = name
        self._writer = Writer(tokenizer, Path(folder))

    def __repr__(self) -> str:
        return self._name

    def ready(self) -> str:
        """Answers once this process runs."""
        return self._name

    def write(self, number: int, version: int, *chunks: Sequence[Scored]) -> Metrics:
        """See Writer.write; chunks arrive through the object store."""
        return self._writer.write(number, [s for chunk in chunks for s in chunk], version)

    def score(self, references: Mapping[str, Sequence[str]], *chunks: Sequence[Rollout]) -> list[AnswerScore]:
        """See Writer.score."""
        return self._writer.score([r for chunk in chunks for r in chunk], references)

    def read(self, rollouts: Sequence[Rollout], most: int) -> list[tuple[str, int, str]]:
        """(prompt id, sample, text) of the first answers to `most` prompts, for a person to look at."""
        first = [rollout for rollout in rollouts if rollout.sample == 0][:most]
        return [(r.prompt_id, r.sample, self._writer.text(r.answer_ids)) for r in first]

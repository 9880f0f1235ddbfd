"""One model on one data set: answers, text scores, divergences from the teacher, label words.

Answers stay in the object store; only numbers pass through here.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import ray

from ...actors.measurer import PassageMeasure
from ...common.config.eval import METRICS, NEED_ANSWERS, NEED_REFERENCES, EvalConfig
from ...common.types import BatchSummary, SamplingSpec
from ..cli.progress import AnswerCounter, Progress
from ..runtime.pool import Chunk, chunked
from ..runtime.workers import EvalWorkerGroup
from .buckets import LENGTH_BUCKETS, length_bucket, num_words
from .calibration import choices as chosen
from .calibration import label_probabilities
from .exposure import Divergences, exposure_bias
from .rows import AnswerFigures, GivenFigures, LabelFigures, Part, exposure_rows
from .store import EvalDir
from .tasks import Task


@dataclass(slots=True)
class TeacherAnswers:
    """The teacher's own answers, drawn once for all models that see the same prompt tokens."""

    chunks: dict[tuple[str, int, int], list[Chunk]] = field(default_factory=dict)


def samples_answers(config: EvalConfig, task: Task) -> bool:
    """Whether any figure that is wanted of this data set is taken from sampled answers."""
    return not task.is_classification and any(config.wants(metric) for metric in NEED_ANSWERS)


class ModelEval:
    """One model on one data set."""

    def __init__(
        self, config: EvalConfig, folder: EvalDir, model: str, task: Task, workers: EvalWorkerGroup,
        progress: Progress, shared: TeacherAnswers, *, compares: bool, vocabulary: int,
    ):  # fmt: skip
        """`compares`: whether figures that need the teacher are taken."""
        self._config, self._folder, self._task, self._compares = config, folder, task, compares
        self._shared, self._progress, self._workers = shared, progress, workers
        self._vocabulary = vocabulary
        taken = tuple(metric for metric in METRICS if config.wants(metric))
        self._part = Part(model=model, data=task.name, metrics=taken)

    def run(self) -> Part:
        """Every figure that the settings want and the data allow."""
        task, part = self._task, self._part
        if task.is_classification:
            if self._config.wants("calibration"):
                self._classify()
        elif samples_answers(self._config, task):
            part.words = {p.id: num_words(p.references[0]) for p in task.prompts if p.references}
            self._answer()
        if self._config.wants("lm_loss") and task.given and not task.is_classification:
            self._read_given()
        self._note_what_is_missing()
        return part

    def _phase(self, what: str) -> None:
        self._progress.phase(f"{self._part.model} on {self._task.name}: {what}")

    def _counter(self, total: int, done: int = 0) -> AnswerCounter:
        return AnswerCounter(self._progress, total, done=done)

    def _spec(self, seed: int, teacher_mix: float = 0.0) -> SamplingSpec:
        engine = self._config.engine
        return SamplingSpec(
            max_tokens=engine.max_new_tokens,
            temperature=engine.temperature,
            top_p=engine.top_p,
            top_k=engine.top_k,
            teacher_mix=teacher_mix,
            samples=1,
            seed=seed,
            end_ids=self._task.end_ids,
        )

    def _answer(self) -> None:
        """Answers by each seed, graded as text; then compared with the teacher, if there is one."""
        task, part = self._task, self._part
        count = len(task.prompts)
        by_seed: dict[int, list[Chunk]] = {}
        for number, seed in enumerate(self._config.seed_numbers):
            self._phase("answering")
            tell = self._counter(count * self._config.num_seeds, count * number)
            by_seed[seed] = self._workers.generate(task.prompts, self._spec(seed), tell)
            scored = self._workers.write_answers(
                self._folder.answers(part.model, part.data, seed),
                by_seed[seed],
                seed=seed,
                prompts=task.questions,
                references=task.references,
                rule=task.rule,
            )
            part.answers += [AnswerFigures(**asdict(score), seed=seed) for score in scored.scores]
            part.distinct[seed] = scored.distinct_grams, scored.grams
        if self._compares:
            self._compare(by_seed)

    def _compare(self, by_seed: dict[int, list[Chunk]]) -> None:
        part = self._part
        self._phase("measuring its answers")
        chunks = [chunk for found in by_seed.values() for chunk in found]
        own = self._workers.measure(chunks, compare=True, done=self._counter(len(part.answers)))
        assert [m.prompt_id for m in own] == [a.prompt_id for a in part.answers], "in their order"
        part.answers = [
            replace(a, reverse_kl=_sum(m.reverse_kl), forward_kl=_sum(m.forward_kl))
            for a, m in zip(part.answers, own, strict=True)
        ]
        if self._config.wants("ex_acc_err"):
            given = self._teacher_answers()
            self._phase("measuring the teacher's answers")
            theirs = self._workers.measure(given, compare=True, done=self._counter(len(part.answers)))
            bias = exposure_bias(_divergences(own), _divergences(theirs), ended=self._config.ended)
            part.exposure = exposure_rows(part.model, part.data, bias)

    def _teacher_answers(self) -> list[Chunk]:
        """The teacher's answers to these very prompt tokens, by the same seeds."""
        seen = b"".join(p.token_ids.tobytes() for p in self._task.prompts)
        key = self._task.name, zlib.crc32(seen), self._vocabulary
        if key not in self._shared.chunks:
            self._phase("the teacher answers")
            tell = self._counter(len(self._task.prompts) * self._config.num_seeds)
            self._shared.chunks[key] = [
                chunk
                for seed in self._config.seed_numbers
                for chunk in self._workers.generate(self._task.prompts, self._spec(seed, 1.0), tell)
            ]
        return self._shared.chunks[key]

    def _read_given(self) -> None:
        self._phase("reading given answers")
        chunks = [
            Chunk(ref=ray.put(list(piece)), summary=BatchSummary.of(piece))
            for piece in chunked(self._task.given, self._config.engine.chunk)
        ]
        tell = self._counter(len(self._task.given))
        self._part.given = [
            GivenFigures(prompt_id=m.prompt_id, nll=-_total(m.logprobs), tokens=len(m.logprobs))
            for m in self._workers.measure(chunks, compare=False, done=tell)
        ]

    def _classify(self) -> None:
        self._phase("choosing among labels")
        for group in self._task.choices:
            tell = self._counter(len(group.prompts))
            found = self._workers.choose(group.prompts, group.labels, tell)
            probabilities, mass = label_probabilities(np.stack([one.logprobs for one in found]))
            confidence, right = chosen(probabilities, group.right)
            self._part.labels += [
                LabelFigures(prompt_id=p.id, confidence=float(c), right=bool(r), mass=float(m))
                for p, c, r, m in zip(group.prompts, confidence, right, mass, strict=True)
            ]

    def _note_what_is_missing(self) -> None:
        """What a reader of the rows would look for in vain."""
        config, task, part = self._config, self._task, self._part
        bare = sum(not prompt.references for prompt in task.prompts)
        if bare and (config.wants("lm_loss") or any(config.wants(metric) for metric in NEED_REFERENCES)):
            part.notes.append(
                f"{bare} of {len(task.prompts)} prompts have no reference: they count in no text score"
                " and not in lm_loss"
            )
        for metric in config.metrics or ():  # asked for by name
            if task.is_classification and metric in (*NEED_ANSWERS, "lm_loss"):
                part.notes.append(f"{metric} is not taken: models choose among label words here")
            elif metric == "calibration" and not task.is_classification:
                part.notes.append("calibration is not taken: the data set has no column of choices")
            elif metric == "accuracy" and task.rule is None:
                part.notes.append("accuracy is not taken: the data set has no rule (extract) for verdicts")
        filled = {length_bucket(words) for words in part.words.values()}
        for bucket in (b for b in LENGTH_BUCKETS if part.words and b not in filled):
            part.notes.append(
                f"no reference answer has a length in {bucket} words: its rows are empty (n = 0)"
            )


def _sum(values: Any) -> float | None:
    return None if values is None else _total(values)


def _total(values: Any) -> float:
    return float(np.sum(values, dtype=np.float64))


def _divergences(measures: Sequence[PassageMeasure]) -> list[Divergences]:
    found = []
    for one in measures:
        assert one.forward_kl is not None, "measured with a teacher"
        found.append(Divergences(prompt_id=one.prompt_id, kl=one.forward_kl))
    return found

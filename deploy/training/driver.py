"""The driver of one run: sample, score, learn, publish, measure, until the steps are done.

    collect   rollout actors draw a set of answers with one version of the weights (or data gives them)
    score     teacher actors add log-probs and what the loss asks for
    learn     the learner group makes optimiser steps over inner epochs
    publish   new weights go to the rollout actors, as one manifest

Only prompts, references and numbers pass through here.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...common.config.run import RunConfig
from ...common.metrics import means, merge
from ...common.types import BatchSummary, Passage, Prompt, SamplingSpec, WeightVersion
from ...learner.sharding import Item
from ..cli.progress import Progress
from ..data.streams import DataStreams
from ..models.model_card import write_card
from ..runtime.pool import Chunk
from ..runtime.workers import WorkerGroup
from . import collapse
from .measurement import Measurement
from .metrics_log import Recorder, summary_of
from .run_dir import RunFolder, State

NUM_EXAMPLES = 3
"""Answers of a measurement that are kept as text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run leaves in its caller's hands."""

    folder: RunFolder
    steps: int
    best_step: int
    before: Measurement | None
    """Held-out prompts answered by the student as it started; None without held-out data."""
    after: Measurement | None
    """The same by the best student."""
    teacher: Measurement | None
    """The same by the teacher, where the engines hold it (teacher_mix > 0)."""
    memory: dict[str, int]
    """Most resident bytes of each process, by name; shared pages count in each."""
    seconds: float


class Driver:
    """One run over a cast that is ready. `run` is the whole of it."""

    def __init__(
        self, config: RunConfig, streams: DataStreams, start_workers: WorkerGroup, folder: RunFolder, recorder: Recorder,
        progress: Progress, state: State | None,
    ):  # fmt: skip
        self._config, self._streams, self._workers = config, streams, start_workers
        self._folder, self._recorder, self._progress = folder, recorder, progress
        self._state = state or State()
        self._resumed = state is not None
        self._measured_at = -1
        self._values: dict[str, float] = {}
        self._warned: set[str] = set()
        self._lost: list[str] = []

    def run(self) -> Result:
        """Run to the last step; a resumed run starts at its newest checkpoint."""
        began = time.monotonic()
        if self._resumed:
            self._restore()
        else:
            self._first_measure()
        state, config = self._state, self._config
        self._progress.start_steps(state.step, config.learner.max_steps, self._of_tokens)
        while not self._done:
            started = time.monotonic()
            self._learn(self._collect_and_score())
            state.sets += 1
            self._publish()
            self._validate_if_due()
            self._tell_losses()
            self._checkpoint_if_due()
            self._recorder.record(state.step, {"run/iteration_s": time.monotonic() - started})
        return self._finish(began)

    @property
    def _done(self) -> bool:
        """Whether all steps are made, or all tokens trained on that the run may use."""
        learner, state = self._config.learner, self._state
        spent = learner.token_budget is not None and state.tokens >= learner.token_budget
        return spent or state.step >= learner.max_steps

    @property
    def _of_tokens(self) -> float | None:
        """Share of the run's tokens that is used; None where they are not counted out."""
        budget = self._config.learner.token_budget
        return None if budget is None else self._state.tokens / budget

    def _collect_and_score(self) -> list[Chunk]:
        """A set of answers, sampled, given, or some of both, as the objective needs them."""
        config, number = self._config, self._state.sets
        chunks = self._sample(number) if config.sampled_answers else []
        if config.given_answers:
            chunks += self._streams.take_answers(config.given_answers)
        if config.objective.kind == "sft":
            return chunks
        began = time.monotonic()
        self._progress.phase("scoring")
        count = self._counting(sum(map(len, chunks)))
        scored = self._workers.score(
            chunks,
            hidden=config.objective.needs_teacher_hidden,
            logprobs=config.objective.needs_teacher_logprobs or config.teacher_server.drawn_logprobs,
            done=count,
        )
        seconds = time.monotonic() - began
        read = [chunk.summary for chunk in scored if not chunk.scored]
        tokens = sum(sum(summary.answer_tokens) for summary in read)
        values = {"teacher/set_s": seconds, "teacher/tokens_per_s": tokens / seconds} if tokens else {}
        if self._workers.states_gap is not None:
            values["teacher/states_gap"] = self._workers.states_gap
        values |= means(self._workers.write(number, self._state.version, scored))
        values |= means(merge(summary.metrics for summary in read))
        self._recorder.record(self._state.step, values)
        self._watch(values)
        return scored

    def _sample(self, number: int) -> list[Chunk]:
        config = self._config
        began = time.monotonic()
        self._progress.phase("sampling")
        prompts = self._streams.take_prompts(config.sampled_answers // config.rollout.num_generations)
        chunks = self._workers.generate(
            prompts, self._spec(seed=number), self._counting(config.sampled_answers)
        )
        seconds = time.monotonic() - began
        tokens = sum(sum(chunk.summary.answer_tokens) for chunk in chunks)
        values = {"rollout/set_s": seconds, "rollout/tokens_per_s": tokens / seconds}
        self._recorder.record(self._state.step, values)
        self._progress.show(drawn=f"{tokens / seconds:,.0f} tokens/s")
        return chunks

    def _learn(self, chunks: list[Chunk]) -> None:
        """Inner epochs over one set, each in an order of its own; then the set is let go."""
        self._run_epochs(items_of(chunks))
        self._workers.learner.release()

    def _run_epochs(self, items: Sequence[Item]) -> None:
        config, state = self._config, self._state
        self._progress.phase("learning")
        for epoch in range(config.num_iterations):
            order = np.random.default_rng([config.seed, state.sets, epoch]).permutation(len(items))
            for start in range(0, len(items), config.learner.batch_size):
                batch = [items[i] for i in order[start : start + config.learner.batch_size]]
                report = self._workers.learner.step(
                    batch, self._text_items(), fresh=epoch == 0 and start == 0, first_epoch=epoch == 0
                )
                state.step = report.step
                values = means(report.metrics) | {"learner/step_s": report.seconds}
                tokens = sum(item.answer_tokens for item in batch)
                state.tokens += tokens
                values["learner/tokens_per_s"] = tokens / report.seconds
                self._recorder.record(state.step, values, version=state.version)
                self._watch(values)
                self._show(values)
                if self._done:
                    return

    def _text_items(self) -> list[Item]:
        """Plain text for one step's language-model term; scored by the teacher where it has a share."""
        config = self._config
        if config.text is None or config.objective.lm_coef == 0 or config.objective.kind == "sft":
            return []
        chunks = self._streams.take_text(config.text.batch_size or config.learner.batch_size)
        if config.objective.text_teacher_share > 0:
            chunks = self._workers.score(chunks, hidden=True, logprobs=False)
        return items_of(chunks)

    def _publish(self) -> None:
        """The learner's weights to every rollout actor."""
        self._state.version += 1
        began = time.monotonic()
        manifest = self._workers.publish(WeightVersion(self._state.version))
        published = time.monotonic()
        load_s = self._workers.load(manifest)
        self._recorder.record(
            self._state.step,
            {
                "weights/bytes": float(manifest.num_bytes),
                "weights/publish_s": published - began,
                "weights/load_s": load_s,
            },
            version=self._state.version,
        )

    def measure(
        self, prompts: Sequence[Prompt], *, samples: int, teacher_mix: float = 0.0, seed: int = 0
    ) -> Measurement:
        """Score answers of the student alone (or, with teacher_mix = 1, of the teacher alone)."""
        spec = SamplingSpec(
            max_tokens=self._config.validation.max_new_tokens or self._config.rollout.max_new_tokens,
            temperature=1.0,
            teacher_mix=teacher_mix,
            samples=samples,
            seed=self._seed("measure", seed),
        )
        chunks = self._workers.generate(prompts, spec, self._counting(len(prompts) * samples))
        scores = self._workers.text_scores(prompts, chunks)
        examples = [text for *_, text in self._workers.read(chunks[0], NUM_EXAMPLES)]
        if self._config.teacher is None or teacher_mix > 0:
            return Measurement.of(scores, None, examples)
        scored = self._workers.score(chunks, hidden=True, logprobs=False)
        records = self._workers.learner.measure(items_of(scored))
        reverse_kl = {(r.prompt_id, r.sample): r.reverse_kl for r in records if r.reverse_kl is not None}
        return Measurement.of(scores, reverse_kl, examples)

    def _first_measure(self) -> None:
        """Held-out and validation scores of the student as it starts."""
        if self._streams.test:
            self._progress.phase("held-out prompts, before")
            samples, config = self._config.validation.test_num_generations, self._config
            self._state.before = self.measure(self._streams.test, samples=samples).to_json()
            if config.samples_answers and config.rollout.teacher_mix > 0:
                teacher = self.measure(self._streams.test, samples=samples, teacher_mix=1.0)
                self._state.teacher = teacher.to_json()
        self._validate()

    def _validate_if_due(self) -> None:
        every, step = self._config.eval_steps, self._state.step
        if step // every > self._measured_at // every or self._done:
            self._validate()

    def _validate(self) -> None:
        """Measure on validation prompts, and keep the student if it is the best so far."""
        state, config = self._state, self._config
        self._measured_at = state.step
        if self._streams.validation_answers or self._streams.validation:
            self._progress.phase("validating")
        if self._streams.validation_answers:
            values = {"validation/loss": self._answer_loss(self._streams.validation_answers)}
        elif self._streams.validation:
            values = self.measure(
                self._streams.validation, samples=config.validation.num_generations
            ).values()
        else:
            return
        self._recorder.record(state.step, values, version=state.version)
        self._values |= values
        self._show(values)
        name, sign = self._criterion(values)
        if state.best_value is None or sign * values[name] > sign * state.best_value:
            state.best_value, state.best_step = values[name], state.step
            self._save_student(self._folder.best, values)

    def _answer_loss(self, passages: Sequence[Passage]) -> float:
        """-log q of given answers, nats per token."""
        records = self._workers.learner.measure(items_of(self._streams.put(passages)))
        return sum(r.nll for r in records) / sum(r.tokens for r in records)

    def _criterion(self, values: dict[str, float]) -> tuple[str, int]:
        """Which value chooses the best student, and whether more (+1) or less (-1) is better."""
        metric = self._config.validation.metric
        if "validation/loss" in values:
            metric = "loss"
        elif metric == "auto":
            answered = all(prompt.references for prompt in self._streams.validation)
            metric = "rouge_l" if answered else "reverse_kl"
        return f"validation/{metric}", 1 if metric == "rouge_l" else -1

    def _save_student(self, path: Path, values: dict[str, float]) -> None:
        self._workers.learner.export(path)
        write_card(path, self._config, self._state.step, values)

    def _checkpoint_if_due(self) -> None:
        state, config = self._state, self._config
        before = state.step - config.steps_per_set
        every = config.save_steps
        if state.step // every > max(before, 0) // every or self._done:
            self._progress.phase("saving a checkpoint")
            state.cursors = self._streams.cursors()
            self._workers.learner.save(self._folder.checkpoint(state.step))
            self._folder.complete_checkpoint(state, config.save_total_limit)

    def _restore(self) -> None:
        """Everything as it was at the newest checkpoint, in the learner and in the engines."""
        state = self._state
        self._progress.phase(f"going on from step {state.step}")
        self._workers.learner.restore(self._folder.checkpoint(state.step))
        self._folder.restore_best(state.step)
        self._streams.move_to(state.cursors)
        self._workers.load(self._workers.publish(WeightVersion(state.version)))
        self._measured_at = state.step

    def _finish(self, began: float) -> Result:
        """Save the last student, and measure the best one on held-out prompts."""
        state = self._state
        self._save_student(self._folder.last, self._values)
        if state.best_value is None:
            self._save_student(self._folder.best, self._values)
            state.best_step = state.step
        before = after = teacher = None
        if self._streams.test:
            self._progress.phase("held-out prompts, after")
            if state.best_step != state.step:
                self._workers.learner.load_weights(self._folder.best)
                self._publish()
            before = Measurement.from_json(state.before) if state.before else None
            teacher = Measurement.from_json(state.teacher) if state.teacher else None
            after = self.measure(self._streams.test, samples=self._config.validation.test_num_generations)
        memory = self._workers.peak_memory()
        self._recorder.event("memory", step=state.step, bytes=memory)
        return Result(
            folder=self._folder,
            steps=state.step,
            best_step=state.best_step,
            before=before,
            after=after,
            teacher=teacher,
            memory=memory,
            seconds=time.monotonic() - began,
        )

    def _spec(self, *, seed: int) -> SamplingSpec:
        rollout = self._config.rollout
        return SamplingSpec(
            max_tokens=rollout.max_new_tokens,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
            teacher_mix=rollout.teacher_mix,
            samples=rollout.num_generations,
            seed=self._seed("set", seed),
            ignore_eos=rollout.ignore_eos,
            states=self._workers.states,
        )

    def _seed(self, purpose: str, number: int) -> int:
        """A seed of its own for each purpose, the same in every process."""
        return zlib.crc32(f"{self._config.seed}/{purpose}/{number}".encode())

    def _counting(self, total: int) -> Callable[[BatchSummary], None]:
        """Shows how many of `total` answers are done, and tells of those that were dropped."""
        done = 0

        def tell(summary: BatchSummary) -> None:
            nonlocal done
            done += len(summary)
            self._progress.count(done, total)
            for drop in summary.dropped:
                self._recorder.dropped(drop)
            for line in summary_of(summary.dropped):
                self._progress.say(line)

        return tell

    def _tell_losses(self) -> None:
        for name in [name for name in self._workers.lost if name not in self._lost]:
            self._lost.append(name)
            self._recorder.event("lost", step=self._state.step, name=name)
            self._progress.say(f"{name} died; the others of its role took over its work")

    def _watch(self, values: dict[str, float]) -> None:
        """Compare with the first set, and say once what looks like a collapse."""
        first = self._state.first_health
        for name, value in values.items():
            first.setdefault(name, value)
        for warning in collapse.warnings(values, first):
            if warning.split(";")[-1] not in self._warned:
                self._warned.add(warning.split(";")[-1])
                self._recorder.event("warning", step=self._state.step, text=warning)
                self._progress.say(f"warning: {warning}")

    def _show(self, values: dict[str, float]) -> None:
        self._progress.step(self._state.step, self._of_tokens)
        if (kl := values.get("learner/reverse_kl")) is not None:
            self._progress.show(reverse_KL=f"{kl:.3f}")
        if (rouge := values.get("validation/rouge_l")) is not None:
            self._progress.show(**{"ROUGE-L": f"{rouge:.1f}"})
        if (loss := values.get("validation/loss")) is not None:
            self._progress.show(validation_loss=f"{loss:.3f}")
        if (speed := values.get("learner/tokens_per_s")) is not None:
            self._progress.show(trained=f"{speed:,.0f} tokens/s")


def items_of(chunks: Sequence[Chunk]) -> list[Item]:
    """Every answer of the chunks, by reference and length."""
    return [
        Item(
            chunk=chunk.ref,
            position=position,
            prompt_tokens=chunk.summary.prompt_tokens[position],
            answer_tokens=chunk.summary.answer_tokens[position],
        )
        for chunk in chunks
        for position in range(len(chunk))
    ]

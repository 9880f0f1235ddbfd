"""The driver of one run: sample, score, learn, publish, validate, until the steps are done.

    collect   rollout actors draw a set of answers with one version of the weights (or data gives them)
    score     teacher actors add log-probs and what the loss asks for
    learn     the learner group makes optimiser steps over inner epochs
    publish   new weights go to the rollout actors, as one manifest

Only prompts, references and numbers pass through here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...common.config.run import RunConfig
from ...common.errors import Disagreement
from ...common.logs import EventLog, bind
from ...common.metrics import means, merge
from ...common.types import SamplingSpec, WeightVersion, answer_names
from ...learner.sharding import Item
from ..cli.progress import AnswerCounter, Progress
from ..data.streams import DataStreams
from ..runtime.pool import Chunk
from ..runtime.probes import tolerated
from ..runtime.workers import WorkerGroup
from . import collapse
from .callbacks import CallbackList, Moment, TrainState
from .measurement import Measurement
from .metrics_log import MetricsLog
from .run_dir import RunDir, RunState
from .validator import TestScores, Validator, items_of, seed_of

log = EventLog(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run leaves in its caller's hands."""

    folder: RunDir
    steps: int
    best_step: int
    before: Measurement | None
    """Test prompts answered by the student as it started; None without data.test."""
    after: Measurement | None
    """The same by the best student; None where a callback stopped the run."""
    teacher: Measurement | None
    """The same by the teacher, where the engines hold it (teacher_mix > 0)."""
    memory: dict[str, int]
    """Most resident bytes of each process, by name; shared pages count in each."""
    seconds: float
    stopped_by: str | None = None
    """The callback that asked the run to stop before its last step; None where it came to its end."""


class Driver:
    """One run over workers that are ready. `run` is the whole of it."""

    def __init__(
        self, config: RunConfig, streams: DataStreams, workers: WorkerGroup, folder: RunDir,
        metrics_log: MetricsLog, progress: Progress, state: RunState | None, callbacks: Sequence[object] = (),
    ):  # fmt: skip
        self._config, self._streams, self._workers = config, streams, workers
        self._folder, self._metrics_log, self._progress = folder, metrics_log, progress
        self._state = state or RunState()
        self._resumed = state is not None
        self._callbacks = CallbackList(callbacks)
        self._validator = Validator(config, streams, workers, folder, metrics_log, progress, self._state)
        self._latest: dict[str, float] = {}
        self._warned: set[str] = set()
        self._lost: list[str] = []

    def run(self) -> Result:
        """Run to the last step; a resumed run starts at its newest checkpoint."""
        began = time.monotonic()
        if self._resumed:
            self._restore()
        self._call("on_start")
        if not self._resumed:
            self._measure_start()
        state = self._state
        self._progress.start_steps(state.step, self._config.learner.max_steps, self._spent_tokens)
        while not self._done:
            started = time.monotonic()
            bind(set=state.sets, step=state.step, version=state.version)
            self._metrics_log.begin_set(state.sets)
            self.update()
            self._validate_if_due()
            self._report_lost_workers()
            self._checkpoint_if_due()
            self._record({"run/iteration_s": time.monotonic() - started})
        return self._finish(began)

    def update(self) -> None:
        """Collect a set of answers, learn from it, and publish the new weights."""
        self._learn(self._collect_and_score())
        self._state.sets += 1
        self._publish()

    @property
    def _at_end(self) -> bool:
        """Whether all steps are made, or all tokens of the budget used."""
        learner, state = self._config.learner, self._state
        spent = learner.token_budget is not None and state.tokens >= learner.token_budget
        return spent or state.step >= learner.max_steps

    @property
    def _done(self) -> bool:
        """Whether no further set of answers is begun: at the end, or where a callback has said stop."""
        return self._at_end or self._callbacks.stopped_by is not None

    @property
    def _spent_tokens(self) -> float | None:
        """Fraction of the run's tokens that is used; None where they are not counted out."""
        budget = self._config.learner.token_budget
        return None if budget is None else self._state.tokens / budget

    def _collect_and_score(self) -> list[Chunk]:
        """A set of answers, sampled, given, or some of both, as the objective needs them."""
        config, number = self._config, self._state.sets
        chunks = self._sample(number) if config.sampled_answers else []
        if config.given_answers:
            given = self._streams.take_answers(config.given_answers)
            log.event("answers given", ids=_ids_of(given))
            chunks += given
        if config.objective.kind == "sft":
            return chunks
        began = time.monotonic()
        self._progress.phase("scoring")
        scored = self._workers.score(
            chunks,
            hidden=config.objective.needs_teacher_hidden,
            logprobs=config.objective.needs_teacher_logprobs or config.teacher_server.drawn_logprobs,
            done=self._counter(sum(map(len, chunks))),
        )
        seconds = time.monotonic() - began
        read = [chunk.summary for chunk in scored if not chunk.scored]
        tokens = sum(sum(summary.answer_tokens) for summary in read)
        values = {"teacher/set_s": seconds, "teacher/tokens_per_s": tokens / seconds} if tokens else {}
        if self._workers.states_gap is not None:
            values["teacher/states_gap"] = self._workers.states_gap
        values |= means(self._workers.write(number, self._state.version, scored))
        values |= means(merge(summary.metrics for summary in read))
        self._record(values)
        self._watch(values)
        return scored

    def _sample(self, number: int) -> list[Chunk]:
        config = self._config
        began = time.monotonic()
        self._progress.phase("sampling")
        prompts = self._streams.take_prompts(config.sampled_answers // config.rollout.num_generations)
        chunks = self._workers.generate(prompts, self._spec(number), self._counter(config.sampled_answers))
        seconds = time.monotonic() - began
        tokens = sum(sum(chunk.summary.answer_tokens) for chunk in chunks)
        log.event("set drawn", ids=_ids_of(chunks), tokens=tokens, seconds=round(seconds, 3))
        self._record(
            {
                "rollout/set_s": seconds,
                "rollout/tokens_per_s": tokens / seconds,
                "rollout/dropped": float(sum(len(chunk.summary.dropped) for chunk in chunks)),
            }
        )
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
                self._step(batch, fresh=epoch == 0 and start == 0, first_epoch=epoch == 0)
                if self._at_end:
                    return

    def _step(self, batch: Sequence[Item], *, fresh: bool, first_epoch: bool) -> None:
        state = self._state
        report = self._workers.learner.step(batch, self._text_items(), fresh=fresh, first_epoch=first_epoch)
        state.step = report.step
        tokens = sum(item.answer_tokens for item in batch)
        state.tokens += tokens
        bind(step=state.step)
        values = means(report.metrics)
        values |= {"learner/step_s": report.seconds, "learner/tokens_per_s": tokens / report.seconds}
        self._record(values, version=state.version)
        log.event("step", step=state.step, loss=values["learner/loss"], seconds=round(report.seconds, 3))
        self._check_engine_gap(values.get("learner/engine_gap"))
        self._watch(values)
        self._show(values)
        self._call("on_step")

    def _check_engine_gap(self, gap: float | None) -> None:
        """Raises Disagreement where engine and learner differ on answers that the one drew."""
        config = self._config
        most = tolerated(config.verify.tolerance, config.rollout.dtype, config.learner.dtype)
        if gap is None or gap <= most or config.verify.on_engine_gap == "warn" or config.uses_dropout:
            return
        raise Disagreement(
            f"log q differs by {gap:.2g} nats on average between engine and learner at the same version, and"
            f" {most:g} are tolerated (verify.tolerance): importance weights would be wrong. `minillm verify`"
            " shows who is off; verify.on_engine_gap=warn goes on all the same."
        )

    def _text_items(self) -> list[Item]:
        """Plain text for one step's language-model term; scored by the teacher where it has a part in it."""
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
        log.event("published", version=self._state.version, bytes=manifest.num_bytes)
        self._record(
            {
                "weights/bytes": float(manifest.num_bytes),
                "weights/publish_s": published - began,
                "weights/load_s": load_s,
            },
            version=self._state.version,
        )

    def _measure_start(self) -> None:
        self._validator.measure_start()
        self._after_validation(self._validator.values)

    def _validate_if_due(self) -> None:
        if self._validator.is_due() or self._done:
            self._after_validation(self._validator.validate())

    def _after_validation(self, values: Mapping[str, float]) -> None:
        if values:
            self._latest |= values
            log.event("measured", step=self._state.step, best_step=self._state.best_step, values=dict(values))
            self._show(values)
            self._call("on_evaluate")

    def _checkpoint_if_due(self) -> None:
        state, config = self._state, self._config
        before = state.step - config.steps_per_set
        if state.step // config.save_steps > max(before, 0) // config.save_steps or self._done:
            self._save_checkpoint()

    def _save_checkpoint(self) -> None:
        state = self._state
        self._progress.phase("saving a checkpoint")
        state.cursors = self._streams.cursors()
        self._workers.learner.save(self._folder.checkpoint(state.step))
        self._folder.complete_checkpoint(state, self._config.save_total_limit)
        log.event("checkpoint", step=state.step)
        self._call("on_save")

    def _restore(self) -> None:
        """Everything as it was at the newest checkpoint, in the learner and in the engines."""
        state = self._state
        self._progress.phase(f"going on from step {state.step}")
        self._workers.learner.restore(self._folder.checkpoint(state.step))
        self._folder.restore_best(state.step)
        self._streams.move_to(state.cursors)
        if state.version:  # engines start with the weights of version 0
            self._workers.load(self._workers.publish(WeightVersion(state.version)))
        self._validator.measured_at = state.step
        log.event("restored", step=state.step, version=state.version)

    def _finish(self, began: float) -> Result:
        """Export the last student, and measure the best one on test prompts."""
        state = self._state
        stopped_by = None if self._at_end else self._callbacks.stopped_by
        if stopped_by is not None and state.step not in self._folder.checkpoint_steps():
            self._save_checkpoint()
        self._validator.save_last()
        scores = TestScores()
        if stopped_by is not None:
            self._progress.say(
                f"stopped after step {state.step}, as {stopped_by} asked; the checkpoint is complete, the"
                f" student is in {self._folder.last}, and `minillm resume {self._folder.path}` goes on"
            )
        elif self._streams.test:
            if state.best_step != state.step:
                self._workers.learner.load_weights(self._folder.best)
                self._publish()
            scores = self._validator.measure_best()
        self._call("on_end")
        memory = self._workers.peak_memory()
        self._report_lost_workers()  # also who died when there was nothing left to do
        self._metrics_log.event("memory", step=state.step, bytes=memory)
        return Result(
            folder=self._folder,
            steps=state.step,
            best_step=state.best_step,
            before=scores.before,
            after=scores.after,
            teacher=scores.teacher,
            memory=memory,
            seconds=time.monotonic() - began,
            stopped_by=stopped_by,
        )

    def _spec(self, number: int) -> SamplingSpec:
        """How set `number` is drawn."""
        rollout = self._config.rollout
        return SamplingSpec(
            max_tokens=rollout.max_new_tokens,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
            teacher_mix=rollout.teacher_mix,
            samples=rollout.num_generations,
            seed=seed_of(self._config.seed, "set", number),
            end_ids=self._streams.answer_format.end_ids,
            ignore_eos=rollout.ignore_eos,
            states=self._workers.states,
        )

    def _counter(self, total: int) -> AnswerCounter:
        return AnswerCounter(self._progress, total, self._metrics_log.dropped)

    def _record(self, values: Mapping[str, float], **stamps: int) -> None:
        self._latest |= values
        self._metrics_log.record(self._state.step, values, **stamps)

    def _report_lost_workers(self) -> None:
        for name in [name for name in self._workers.lost if name not in self._lost]:
            self._lost.append(name)
            self._metrics_log.event("lost", step=self._state.step, name=name)
            log.warning("%s died; the run goes on without it", name)

    def _watch(self, values: Mapping[str, float]) -> None:
        """Compare with the first set, and say once what looks like a collapse."""
        first = self._state.first_health
        for name, value in values.items():
            first.setdefault(name, value)
        for symptom in collapse.symptoms(values, first):
            if symptom.name not in self._warned:
                self._warned.add(symptom.name)
                self._metrics_log.event(
                    "warning", step=self._state.step, name=symptom.name, text=str(symptom)
                )
                log.warning("%s", symptom)

    def _show(self, values: Mapping[str, float]) -> None:
        self._progress.step(self._state.step, self._spent_tokens)
        if (kl := values.get("learner/reverse_kl")) is not None:
            self._progress.show(reverse_KL=f"{kl:.3f}")
        if (rouge := values.get("validation/rouge_l")) is not None:
            self._progress.show(**{"ROUGE-L": f"{rouge:.1f}"})
        if (loss := values.get("validation/loss")) is not None:
            self._progress.show(validation_loss=f"{loss:.3f}")
        if (speed := values.get("learner/tokens_per_s")) is not None:
            self._progress.show(trained=f"{speed:,.0f} tokens/s")

    def _call(self, moment: Moment) -> None:
        """Tell the callbacks where the run stands."""
        state = self._state
        self._callbacks.call(
            moment,
            TrainState(
                output_dir=self._folder.path,
                step=state.step,
                max_steps=self._config.learner.max_steps,
                set=state.sets,
                version=state.version,
                metrics=dict(self._latest),
                best_step=state.best_step,
                best_value=state.best_value,
            ),
        )


def _ids_of(chunks: Sequence[Chunk]) -> list[str]:
    return [
        name for chunk in chunks for name in answer_names(chunk.summary.prompt_ids, chunk.summary.samples)
    ]

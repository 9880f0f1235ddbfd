"""What the driver counts of a set, and where a run ends: at its last step, whoever asked it to stop."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from minillm_ray.common.config.run import LearnerConfig, ModelConfig, RolloutConfig, RunConfig, VerifyConfig
from minillm_ray.common.errors import Disagreement
from minillm_ray.common.types import AnswerFormat, BatchSummary, Dropped, SamplingSpec, StepReport
from minillm_ray.deploy.cli.progress import Progress
from minillm_ray.deploy.runtime.pool import Chunk
from minillm_ray.deploy.training.callbacks import STOP, Callback, TrainState
from minillm_ray.deploy.training.driver import Driver
from minillm_ray.deploy.training.metrics_log import FILE, MetricsLog, read_metrics
from minillm_ray.deploy.training.validator import items_of
from rich.console import Console

DROPPED = Dropped(prompt_id="train/2", stage="rollout", reason="prompt_too_long", detail="9 + 4 > 12")
EMPTY = BatchSummary(prompt_ids=(), samples=(), prompt_tokens=(), answer_tokens=(), dropped=(DROPPED,))


def answered(prompt: str) -> BatchSummary:
    """One answer of four tokens."""
    return BatchSummary(prompt_ids=(prompt,), samples=(0,), prompt_tokens=(3,), answer_tokens=(4,))


class Workers:
    """Stands in for all actors: answers what it is given but the prompt train/2, and counts steps."""

    states = None
    steps = 0

    @property
    def learner(self) -> Workers:
        return self

    def generate(
        self, prompts: list[str], spec: SamplingSpec, done: Callable[[BatchSummary], None]
    ) -> list[Chunk]:
        assert spec.samples == 1
        chunks = [Chunk(ref=p, summary=EMPTY if p == "train/2" else answered(p)) for p in prompts]
        for chunk in chunks:
            done(chunk.summary)
        return chunks

    def step(
        self, batch: Sequence[Any], texts: Sequence[Any], *, fresh: bool, first_epoch: bool
    ) -> StepReport:
        assert batch
        assert not texts
        self.steps += 1
        return StepReport(step=self.steps, metrics={"learner/loss": (1.0, 1.0)}, seconds=0.5)


class StopsAt(Callback):
    """Says STOP behind a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step(self, state: TrainState) -> object:
        return STOP if state.step == self.step else None


def driver_of(folder: Path, max_steps: int, callbacks: Sequence[Callback] = ()) -> tuple[Driver, MetricsLog]:
    config = RunConfig(
        student=ModelConfig(path="student"),
        teacher=ModelConfig(path="teacher"),
        rollout=RolloutConfig(rollout_batch_size=4, num_generations=1),
        learner=LearnerConfig(batch_size=2, max_steps=max_steps),
    )
    streams: Any = SimpleNamespace(
        take_prompts=lambda count: [f"train/{i}" for i in range(count)], answer_format=AnswerFormat()
    )
    metrics, progress = MetricsLog(folder), Progress(Console(file=io.StringIO()))
    workers: Any = Workers()
    where: Any = SimpleNamespace(path=folder)
    return Driver(config, streams, workers, where, metrics, progress, None, callbacks), metrics


def test_dropped_prompts_of_a_set_are_counted_and_each_is_an_event(tmp_path: Path) -> None:
    driver, metrics = driver_of(tmp_path, 8)
    chunks = driver._sample(0)
    metrics.close()
    assert sum(map(len, chunks)) == 3
    (row,) = read_metrics(tmp_path)
    assert row["rollout/dropped"] == 1
    events = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    (drop,) = [event for event in events if event.get("event") == "dropped"]
    assert (drop["prompt_id"], drop["reason"]) == ("train/2", "prompt_too_long")


def test_the_speed_of_sampling_is_all_tokens_over_the_time_of_the_set(tmp_path: Path) -> None:
    driver, metrics = driver_of(tmp_path, 8)
    driver._sample(0)
    metrics.close()
    (row,) = read_metrics(tmp_path)
    assert row["rollout/tokens_per_s"] * row["rollout/set_s"] == pytest.approx(3 * 4)


@pytest.mark.parametrize(
    ("max_steps", "stop_at", "made"),
    [(100, None, 8), (3, None, 3), (100, 1, 8), (3, 1, 3), (3, 3, 3)],
    ids=["a whole set", "the last step", "STOP in a set", "STOP before the last step", "STOP on it"],
)
def test_a_set_is_learned_from_to_its_end_but_never_past_the_last_step(
    tmp_path: Path, max_steps: int, stop_at: int | None, made: int
) -> None:
    driver, _ = driver_of(tmp_path, max_steps, [] if stop_at is None else [StopsAt(stop_at)])
    chunks = [Chunk(ref=name, summary=answered(name)) for name in ("a", "b", "c", "d")]
    driver._run_epochs(items_of(chunks))
    assert driver._state.step == made  # four answers, two a step, four passes
    assert driver._done is (stop_at is not None or made == max_steps)


def test_a_gap_between_engine_and_learner_ends_the_run_unless_it_may_go_on(tmp_path: Path) -> None:
    driver, _ = driver_of(tmp_path, 4)
    driver._check_engine_gap(None)
    driver._check_engine_gap(1e-5)
    with pytest.raises(Disagreement, match=r"log q differs by 0\.01 nats .* verify\.on_engine_gap=warn"):
        driver._check_engine_gap(0.01)
    lenient = VerifyConfig(on_engine_gap="warn")
    driver._config = driver._config.model_copy(update={"verify": lenient})
    driver._check_engine_gap(0.01)

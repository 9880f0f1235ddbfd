"""A run from its first set to its end, over workers that only count: what it records, whatever happens."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from minillm_ray.common.config.run import LearnerConfig, ModelConfig, RolloutConfig, RunConfig
from minillm_ray.common.types import AnswerFormat, BatchSummary, Dropped, SamplingSpec, StepReport
from minillm_ray.deploy.cli.progress import Progress
from minillm_ray.deploy.runtime.pool import Chunk
from minillm_ray.deploy.training import validator as validator_module
from minillm_ray.deploy.training.driver import Driver, Result
from minillm_ray.deploy.training.metrics_log import FILE, MetricsLog, drop_after
from minillm_ray.deploy.training.run_dir import RunDir
from rich.console import Console

CONFIG = RunConfig(
    student=ModelConfig(path="student"),
    teacher=ModelConfig(path="teacher"),
    rollout=RolloutConfig(rollout_batch_size=4, num_generations=1),
    learner=LearnerConfig(batch_size=2, max_steps=4, num_iterations=1),
    save_steps=1,
)
STREAMS: Any = SimpleNamespace(
    take_prompts=lambda count: [f"train/{n}" for n in range(count)],
    cursors=dict,
    move_to=lambda cursors: None,
    test=[],
    validation=[],
    validation_answers=[],
    answer_format=AnswerFormat(),
)


class Workers:
    """All actors, the learner included; each set drops a prompt, and the teacher is dead when all is done."""

    states = states_gap = None

    def __init__(self, interrupted_at: int | None = None):
        self.steps, self.lost, self._interrupted_at = 0, list[str](), interrupted_at

    @property
    def learner(self) -> Workers:
        return self

    def generate(
        self, prompts: list[str], spec: SamplingSpec, done: Callable[[BatchSummary], None]
    ) -> list[Chunk]:
        drop = Dropped(prompt_id="train/9", stage="rollout", reason="prompt_too_long")
        names, ones = tuple(prompts), (1,) * len(prompts)
        sizes = BatchSummary(
            prompt_ids=names, samples=ones, prompt_tokens=ones, answer_tokens=ones, dropped=(drop,)
        )
        done(sizes)
        return [Chunk(ref="set", summary=sizes)]

    def score(self, chunks: list[Chunk], **_: object) -> list[Chunk]:
        return chunks

    def write(self, number: int, version: int, scored: Sequence[Chunk]) -> dict[str, tuple[float, float]]:
        return {"rollout/eos_rate": (1.0, 1.0)}

    def step(self, *_: object, **__: object) -> StepReport:
        self.steps += 1
        if self.steps == self._interrupted_at:
            raise KeyboardInterrupt
        return StepReport(step=self.steps, metrics={"learner/loss": (1.0, 1.0)}, seconds=0.5)

    def publish(self, version: int) -> Any:
        return SimpleNamespace(num_bytes=8)

    def load(self, manifest: object) -> float:
        return 0.1

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "steps").write_text(str(self.steps))

    def restore(self, folder: Path) -> None:
        self.steps = int((folder / "steps").read_text())

    def release(self) -> None: ...

    def export(self, folder: Path, answers: AnswerFormat) -> None: ...

    def peak_memory(self) -> dict[str, int]:
        self.lost.append("teacher-0")
        return {"learner-0": 1 << 20}


def run(folder: Path, interrupted_at: int | None = None) -> Result:
    """Start the run of `folder`, or go on with it as `minillm resume` does."""
    where = RunDir(folder)
    if (state := where.newest_state()) is not None:
        drop_after(folder, state.step, state.sets)
    workers: Any = Workers(interrupted_at)
    log, progress = MetricsLog(folder), Progress(Console(file=io.StringIO()))
    try:
        return Driver(CONFIG, STREAMS, workers, where, log, progress, state).run()
    finally:
        log.close()


def lines_of(folder: Path) -> list[tuple[Any, ...]]:
    """Each line without times: what it is of, and which values or facts it has."""
    lines = [json.loads(line) for line in (folder / FILE).read_text().splitlines()]
    return [(line.get("event"), line.get("step"), line.get("set"), *sorted(line)) for line in lines]


@pytest.fixture(autouse=True)
def no_model_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validator_module, "write_card", lambda *_: None)


@pytest.mark.parametrize("step", [3, 4], ids=["at its first step", "at its second step"])
def test_a_run_that_was_interrupted_in_a_set_has_every_line_once(step: int, tmp_path: Path) -> None:
    run(tmp_path / "undisturbed")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "interrupted", interrupted_at=step)
    assert run(tmp_path / "interrupted").steps == 4
    lines = lines_of(tmp_path / "interrupted")
    assert lines == lines_of(tmp_path / "undisturbed")
    assert [line[:3] for line in lines if line[0] == "dropped"] == [
        ("dropped", None, 0),
        ("dropped", None, 1),
    ]


def test_a_run_ends_well_though_its_teacher_died_when_it_had_nothing_left_to_do(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert (result.steps, result.memory) == (4, {"learner-0": 1 << 20})
    events = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert [event["name"] for event in events if event.get("event") == "lost"] == ["teacher-0"]

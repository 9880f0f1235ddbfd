"""A prompt that the engines drop is counted in the set's numbers, and told one by one as an event."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from minillm_ray.common.config.run import LearnerConfig, ModelConfig, RolloutConfig, RunConfig
from minillm_ray.common.types import BatchSummary, Dropped, SamplingSpec
from minillm_ray.deploy.cli.progress import Progress
from minillm_ray.deploy.runtime.pool import Chunk
from minillm_ray.deploy.training.driver import Driver
from minillm_ray.deploy.training.metrics_log import FILE, MetricsLog, read_metrics
from rich.console import Console

DROPPED = Dropped(prompt_id="train/2", stage="rollout", reason="prompt_too_long", detail="9 + 4 > 12")


class Engines:
    """Stands in for the workers: answers what it is given, and drops the third prompt."""

    states = None

    def generate(
        self, prompts: list[str], spec: SamplingSpec, done: Callable[[BatchSummary], None]
    ) -> list[Chunk]:
        assert spec.samples == 1
        assert len(prompts) == 4
        chunks = []
        for i, prompt in enumerate(prompts):
            if i == 2:
                summary = BatchSummary(
                    prompt_ids=(), samples=(), prompt_tokens=(), answer_tokens=(), dropped=(DROPPED,)
                )
            else:
                summary = BatchSummary(
                    prompt_ids=(prompt,), samples=(0,), prompt_tokens=(3,), answer_tokens=(4,)
                )
            done(summary)
            chunks.append(Chunk(ref=prompt, summary=summary))
        return chunks


def test_dropped_prompts_of_a_set_are_counted_and_each_is_an_event(tmp_path: Path) -> None:
    config = RunConfig(
        student=ModelConfig(path="student"),
        teacher=ModelConfig(path="teacher"),
        rollout=RolloutConfig(rollout_batch_size=4, num_generations=1),
        learner=LearnerConfig(batch_size=2),
    )
    streams: Any = SimpleNamespace(take_prompts=lambda count: [f"train/{i}" for i in range(count)])
    metrics, engines, folder = MetricsLog(tmp_path), Engines(), SimpleNamespace(path=tmp_path)
    driver = Driver(config, streams, engines, folder, metrics, Progress(Console(file=io.StringIO())), None)  # pyright: ignore[reportArgumentType]
    chunks = driver._sample(0)
    metrics.close()
    assert sum(map(len, chunks)) == 3
    (row,) = read_metrics(tmp_path)
    assert row["rollout/dropped"] == 1
    events = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    (drop,) = [event for event in events if event.get("event") == "dropped"]
    assert (drop["prompt_id"], drop["reason"]) == ("train/2", "prompt_too_long")

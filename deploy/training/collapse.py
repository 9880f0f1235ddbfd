"""When to warn: signs that a student collapses or that a process is wrong, each with the setting to try.

Pure: numbers in, symptoms out. The reverse KL alone does not show a collapse, since it falls with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...common.metrics import MOST_STATES_GAP


@dataclass(frozen=True, slots=True, kw_only=True)
class Symptom:
    """Something that looks wrong, and what may help."""

    name: str
    """Its paragraph in the guide on diagnosing a run."""
    seen: str
    fix: str

    def __str__(self) -> str:
        return f"{self.seen}; {self.fix}"


def symptoms(now: Mapping[str, float], start: Mapping[str, float]) -> list[Symptom]:
    """What the latest values show, compared with those of the first set."""
    found: list[Symptom] = []

    def add(name: str, seen: str, fix: str) -> None:
        found.append(Symptom(name=name, seen=seen, fix=fix))

    def fell_below(name: str, fraction: float) -> bool:
        return name in now and name in start and now[name] < fraction * start[name]

    if fell_below("rollout/answer_tokens", 0.3):
        add(
            "short-answers",
            f"answers shrank from {start['rollout/answer_tokens']:.1f} to {now['rollout/answer_tokens']:.1f}"
            " tokens",
            "try objective.length_norm=true, a higher rollout.teacher_mix or a lower learner.optimizer.lr",
        )
    if fell_below("rollout/distinct_4", 0.4):
        add(
            "little-variety",
            f"distinct 4-grams fell from {start['rollout/distinct_4']:.2f} to"
            f" {now['rollout/distinct_4']:.2f}",
            "try a higher rollout.teacher_mix, a lower learner.optimizer.lr or a text corpus (text.path)",
        )
    if fell_below("rollout/eos_rate", 0.3) and start["rollout/eos_rate"] > 0.2:
        add(
            "answers-without-end",
            f"answers that end by themselves fell from {start['rollout/eos_rate']:.0%} to"
            f" {now['rollout/eos_rate']:.0%}",
            "try a lower learner.optimizer.lr or a longer rollout.max_new_tokens",
        )
    if now.get("rollout/repetition", 0.0) > max(0.3, 2 * start.get("rollout/repetition", 0.0)):
        add(
            "repetition",
            f"{now['rollout/repetition']:.0%} of 4-grams repeat within their answer",
            "try a higher rollout.teacher_mix",
        )
    if now.get("learner/engine_gap", 0.0) > 0.05:
        add(
            "engine-gap",
            f"log q differs by {now['learner/engine_gap']:.3f} nats between engine and learner at the same"
            " version",
            "try rollout.dtype=float32 and learner.dtype=float32",
        )
    if now.get("teacher/states_gap", 0.0) > MOST_STATES_GAP:
        add(
            "states-gap",
            f"the teacher's states in the engine are {now['teacher/states_gap']:.2f} from its own, so it"
            " reads answers by itself",
            "set teacher_server.reuse=false to say so beforehand",
        )
    if now.get("learner/clip_fraction", 0.0) > 0.5:
        add(
            "clipping",
            f"{now['learner/clip_fraction']:.0%} of tokens are clipped",
            "try fewer learner.num_iterations or a lower learner.optimizer.lr",
        )
    return found

"""When to warn: signs that a student collapses or that a part is wrong, each with the setting to try.

Pure: numbers in, sentences out. The reverse KL alone does not show a collapse, since it falls with it.
"""

from __future__ import annotations

from collections.abc import Mapping

MOST_STATES_GAP = 0.05
"""How far the teacher's states in the engine may be from its own, to be taken in their place."""


def warnings(now: Mapping[str, float], start: Mapping[str, float]) -> list[str]:
    """Sentences about the latest values, compared with those of the first set."""
    found: list[str] = []

    def fell_below(name: str, fraction: float) -> bool:
        return name in now and name in start and now[name] < fraction * start[name]

    if fell_below("rollout/answer_tokens", 0.3):
        found.append(
            f"answers shrank from {start['rollout/answer_tokens']:.1f} to {now['rollout/answer_tokens']:.1f}"
            " tokens; try objective.length_norm=true, a higher rollout.teacher_mix or a lower"
            " learner.optimizer.lr"
        )
    if fell_below("rollout/distinct_4", 0.4):
        found.append(
            f"distinct 4-grams fell from {start['rollout/distinct_4']:.2f} to"
            f" {now['rollout/distinct_4']:.2f}; try a higher rollout.teacher_mix, a lower"
            " learner.optimizer.lr or a text corpus (text.path)"
        )
    if fell_below("rollout/eos_rate", 0.3) and start["rollout/eos_rate"] > 0.2:
        found.append(
            f"answers that end by themselves fell from {start['rollout/eos_rate']:.0%} to"
            f" {now['rollout/eos_rate']:.0%}; try a lower learner.optimizer.lr or a longer"
            " rollout.max_new_tokens"
        )
    if now.get("rollout/repetition", 0.0) > max(0.3, 2 * start.get("rollout/repetition", 0.0)):
        found.append(
            f"{now['rollout/repetition']:.0%} of 4-grams repeat within their answer; try a higher"
            " rollout.teacher_mix"
        )
    if now.get("learner/engine_gap", 0.0) > 0.05:
        found.append(
            f"log q differs by {now['learner/engine_gap']:.3f} nats between engine and learner at the same"
            " version; try rollout.dtype=float32 and learner.dtype=float32"
        )
    if now.get("teacher/states_gap", 0.0) > MOST_STATES_GAP:
        found.append(
            f"the teacher's states in the engine are {now['teacher/states_gap']:.2f} from its own, so it"
            " reads answers by itself; set teacher_server.reuse=false to say so beforehand"
        )
    if now.get("learner/clip_fraction", 0.0) > 0.5:
        found.append(
            f"{now['learner/clip_fraction']:.0%} of tokens are clipped; try fewer learner.num_iterations or a"
            " lower learner.optimizer.lr"
        )
    return found

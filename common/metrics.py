"""Every number that a run reports: its name, what it means, and the rule for adding it up.

A metric travels as (total, count), so that merging ranks, micro-batches or actors is addition: the
mean of means is wrong where counts differ. A name that is not in the catalogue is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Metrics = dict[str, tuple[float, float]]
"""Name -> (total, count)."""

CATALOGUE: dict[str, str] = {
    "learner/loss": "loss of the optimiser step, all terms",
    "learner/long_term_loss": "sampled term of the loss",
    "learner/single_step_loss": "exact term of the loss",
    "learner/text_loss": "language-model term before its coefficient, nats per token",
    "learner/reverse_kl": "exact KL(student || teacher) at the trained positions, nats per token",
    "learner/forward_kl": "exact KL(teacher || student) at the trained positions, nats per token",
    "learner/divergence": "what kd minimises, where it is neither KL, at the trained positions, per token",
    "learner/overlap": "mass that student and teacher share at the trained positions, sum of min(p, q)",
    "learner/answer_nll": "-log q of given answers, nats per token",
    "learner/clip_fraction": "share of tokens whose ratio is clipped",
    "learner/clip_fraction_first": "the same in the first inner epoch, before the student has moved far",
    "learner/ratio": "mean of q / p~ with the current student",
    "learner/grad_norm": "global gradient norm before clipping",
    "learner/lr": "learning rate",
    "learner/engine_gap": "mean |log q in the engine - log q in the learner| at the same version, nats",
    "learner/tokens_per_s": "answer tokens trained per second",
    "learner/step_s": "seconds of an optimiser step",
    "rollout/tokens_per_s": "answer tokens drawn per second, all actors",
    "rollout/set_s": "seconds to draw a set of answers",
    "rollout/answer_tokens": "answer length, tokens",
    "rollout/eos_rate": "share of answers that end by themselves",
    "rollout/distinct_4": "distinct 4-grams over all 4-grams of a set's answers",
    "rollout/repetition": "share of an answer's 4-grams that it has said before",
    "rollout/weight_p05": "5 % quantile of the importance weight q / p~ when sampled",
    "rollout/weight_p50": "median of the importance weight when sampled",
    "rollout/weight_p95": "95 % quantile of the importance weight when sampled",
    "rollout/weight_mean": "mean of the importance weight when sampled; 1 in expectation",
    "rollout/sampled_kl": "mean of log q - log p over drawn tokens, nats",
    "rollout/weight_age": "weight publications between drawing an answer and training on it",
    "rollout/dropped": "prompts of a set that could not be answered",
    "teacher/tokens_per_s": "answer tokens scored per second, all actors",
    "teacher/set_s": "seconds to score a set of answers",
    "teacher/states_gap": "how far its states from mixed sampling are from its own, over its own; one answer",
    "teacher/padding": "share of token slots that hold padding",
    "weights/bytes": "bytes of one weight update",
    "weights/publish_s": "seconds from the learner to the object store",
    "weights/load_s": "seconds from the object store into the engine, slowest actor",
    "validation/rouge_l": "ROUGE-L F of the student's answers, best reference, x 100",
    "validation/exact_match": "answers equal to a reference after normalising, x 100",
    "validation/reverse_kl": "exact KL(student || teacher) on the student's own answers, nats per token",
    "validation/answer_tokens": "length of the student's answers, tokens",
    "validation/eos_rate": "share of the student's answers that end by themselves",
    "validation/loss": "-log q of reference answers, nats per token",
    "run/iteration_s": "seconds of one iteration: sampling, scoring, learning, weights",
}


MOST_STATES_GAP = 0.05
"""Largest teacher/states_gap at which the engine's states are taken in place of the teacher's own."""


def merge(parts: Iterable[Mapping[str, tuple[float, float]]]) -> Metrics:
    """Add up metrics of several parts; a name that is not in the catalogue is a KeyError."""
    merged: Metrics = {}
    for part in parts:
        for name, (total, count) in part.items():
            if name not in CATALOGUE:
                raise KeyError(f"metric {name!r} is not in common.metrics.CATALOGUE")
            old_total, old_count = merged.get(name, (0.0, 0.0))
            merged[name] = (old_total + total, old_count + count)
    return merged


def means(metrics: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """The value of each metric that was counted at least once."""
    return {name: total / count for name, (total, count) in metrics.items() if count}

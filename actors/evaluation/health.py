"""Signs of a collapse, taken from token ids: the reverse KL falls even while a student degenerates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ...common.metrics import Metrics
from ...common.types import Rollout, Scored


def set_health(scored: Sequence[Scored], version: int) -> Metrics:
    """The health signals of a set of sampled answers; empty for given ones.

    `version` is that of the weights which will learn from the set.
    """
    sampled = [(one.passage, one.teacher_logprobs) for one in scored if isinstance(one.passage, Rollout)]
    if not sampled:
        return {}
    rollouts = [rollout for rollout, _ in sampled]
    answers = [r.answer_ids for r in rollouts]
    count = float(len(rollouts))
    log_weights = np.concatenate([r.student_logprobs - r.behaviour_logprobs for r in rollouts])
    weights = np.exp(log_weights.astype(np.float64))
    low, middle, high = np.quantile(weights, [0.05, 0.5, 0.95])
    found: Metrics = {
        "rollout/answer_tokens": (float(sum(map(len, answers))), count),
        "rollout/eos_rate": (float(sum(r.finish == "stop" for r in rollouts)), count),
        "rollout/distinct_4": distinct_n(answers),
        "rollout/repetition": repetition(answers),
        "rollout/weight_p05": (float(low), 1.0),
        "rollout/weight_p50": (float(middle), 1.0),
        "rollout/weight_p95": (float(high), 1.0),
        "rollout/weight_age": (float(sum(version - r.oldest for r in rollouts)), count),
        "rollout/weight_mean": (float(weights.sum()), float(len(weights))),
    }
    if gaps := [r.student_logprobs - log_p for r, log_p in sampled if log_p is not None]:
        total = np.concatenate(gaps)
        found["rollout/sampled_kl"] = (float(total.sum(dtype=np.float64)), float(len(total)))
    return found


def distinct_n(answers: Sequence[npt.NDArray[np.int32]], n: int = 4) -> tuple[float, float]:
    """(distinct n-grams, all n-grams) over all answers together."""
    grams = [gram for ids in answers for gram in _grams(ids, n)]
    return float(len(set(grams))), float(len(grams))


def repetition(answers: Sequence[npt.NDArray[np.int32]], n: int = 4) -> tuple[float, float]:
    """(n-grams that occurred earlier in their own answer, all n-grams)."""
    repeated = total = 0
    for ids in answers:
        grams = _grams(ids, n)
        repeated += len(grams) - len(set(grams))
        total += len(grams)
    return float(repeated), float(total)


def words_as_ids(answers: Sequence[str]) -> list[npt.NDArray[np.int32]]:
    """Each answer's words, lower case, as numbers that are the same in all of these answers.

    So models with different tokenizers can be compared.
    """
    numbers: dict[str, int] = {}
    return [
        np.array([numbers.setdefault(word, len(numbers)) for word in answer.lower().split()], np.int32)
        for answer in answers
    ]


def _grams(ids: npt.NDArray[np.int32], n: int) -> list[bytes]:
    return [ids[i : i + n].tobytes() for i in range(len(ids) - n + 1)]

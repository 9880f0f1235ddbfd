"""Turns answers into what people read: Parquet files of a set, health signals, and text scores.

It keeps tokens away from the driver: rollouts come to it through the object store, and only numbers go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..common.metrics import Metrics
from ..common.types import Rollout, Scored
from .evaluation.health import distinct_n, repetition
from .evaluation.text_scores import exact_match, rouge_l


class Decodes(Protocol):
    """All that the writer asks of a tokenizer."""

    def decode(self, token_ids: Any, *, skip_special_tokens: bool) -> Any:
        """Text of token ids."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerScore:
    """What a person would want to know of one answer; no tokens in it."""

    prompt_id: str
    sample: int
    rouge_l: float | None
    """[0, 100]; None where the prompt has no reference."""
    exact_match: float | None
    tokens: int
    finished: bool


class Writer:
    """Writes the rollouts of a run and scores answers as text."""

    def __init__(self, tokenizer: Decodes, folder: Path):
        self._tokenizer = tokenizer
        self._folder = folder

    def write(self, number: int, scored: Sequence[Scored], version: int) -> Metrics:
        """Keep set `number` as rollouts/set-NNNNN.parquet; returns the health signals of the set.

        `version` is that of the weights which will learn from it.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        target = self._folder / f"set-{number:05d}.parquet"
        unfinished = target.with_suffix(".partial")
        pq.write_table(
            pa.Table.from_pylist([self._row(number, s) for s in scored], schema=SCHEMA), unfinished
        )
        unfinished.replace(target)
        return health([s.passage for s in scored if isinstance(s.passage, Rollout)], scored, version)

    def score(
        self, rollouts: Sequence[Rollout], references: Mapping[str, Sequence[str]]
    ) -> list[AnswerScore]:
        """ROUGE-L and exact match of each answer against its prompt's references."""
        scores = []
        for rollout in rollouts:
            right = references.get(rollout.prompt_id, ())
            text = self.text(rollout.answer_ids)
            scores.append(
                AnswerScore(
                    prompt_id=rollout.prompt_id,
                    sample=rollout.sample,
                    rouge_l=rouge_l(text, right) if right else None,
                    exact_match=exact_match(text, right) if right else None,
                    tokens=len(rollout.answer_ids),
                    finished=rollout.finish == "stop",
                )
            )
        return scores

    def text(self, ids: np.ndarray) -> str:
        """An answer as a person reads it."""
        return readable(self._tokenizer, ids)

    def _row(self, number: int, scored: Scored) -> dict[str, Any]:
        rollout = scored.passage
        row: dict[str, Any] = {
            "set": number,
            "prompt_id": rollout.prompt_id,
            "prompt": str(self._tokenizer.decode(rollout.prompt_ids.tolist(), skip_special_tokens=False)),
            "answer": self.text(rollout.answer_ids),
            "prompt_ids": rollout.prompt_ids,
            "answer_ids": rollout.answer_ids,
            "teacher_logprobs": scored.teacher_logprobs,
        }
        if isinstance(rollout, Rollout):
            row |= {
                "sample": rollout.sample,
                "behaviour_logprobs": rollout.behaviour_logprobs,
                "student_logprobs": rollout.student_logprobs,
                "mixed_teacher_logprobs": rollout.mixed_teacher_logprobs,
                "weights": np.exp(rollout.student_logprobs - rollout.behaviour_logprobs),
                "oldest": int(rollout.oldest),
                "newest": int(rollout.newest),
                "finish": rollout.finish,
            }
        return row


def readable(tokenizer: Decodes, ids: np.ndarray) -> str:
    """An answer's text, without special tokens and the space around it."""
    return str(tokenizer.decode(ids.tolist(), skip_special_tokens=True)).strip()


_LOGPROBS = pa.list_(pa.float32())
SCHEMA = pa.schema(
    [
        pa.field("set", pa.int32()),
        pa.field("prompt_id", pa.string()),
        pa.field("sample", pa.int32()),
        pa.field("prompt", pa.string()),
        pa.field("answer", pa.string()),
        pa.field("finish", pa.string()),
        pa.field("oldest", pa.int64()),
        pa.field("newest", pa.int64()),
        pa.field("prompt_ids", pa.list_(pa.int32())),
        pa.field("answer_ids", pa.list_(pa.int32())),
        pa.field("behaviour_logprobs", _LOGPROBS),
        pa.field("student_logprobs", _LOGPROBS),
        pa.field("mixed_teacher_logprobs", _LOGPROBS),
        pa.field("teacher_logprobs", _LOGPROBS),
        pa.field("weights", _LOGPROBS),
    ]
)
"""Columns of a rollout file: log-probs in nats, one per answer token; weights = q / p~."""


def health(rollouts: Sequence[Rollout], scored: Sequence[Scored], version: int) -> Metrics:
    """The signals of architecture decision 14 over a set of answers; empty for given answers."""
    if not rollouts:
        return {}
    answers = [r.answer_ids for r in rollouts]
    count = float(len(rollouts))
    log_weights = np.concatenate([r.student_logprobs - r.behaviour_logprobs for r in rollouts])
    sampled = [
        s.passage.student_logprobs - s.teacher_logprobs
        for s in scored
        if isinstance(s.passage, Rollout) and s.teacher_logprobs is not None
    ]
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
    if sampled:
        gaps = np.concatenate(sampled)
        found["rollout/sampled_kl"] = (float(gaps.sum(dtype=np.float64)), float(len(gaps)))
    return found

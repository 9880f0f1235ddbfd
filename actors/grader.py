"""Grades sampled answers as text, and keeps every one of them as Parquet. Knows no Ray.

Tokens stay here: what goes on is numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..common.types import Rollout
from .evaluation.diversity import words_as_ids
from .evaluation.extraction import is_right
from .evaluation.health import distinct_n, repetition
from .evaluation.text_scores import exact_match, rouge_l
from .text_sink import Decodes, readable


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """What one answer is worth as text; scores are [0, 100], None where there is nothing to compare with."""

    prompt_id: str
    seed: int
    rouge_l: float | None
    exact_match: float | None
    accuracy: float | None
    """100 if its verdict is the right one, by the data set's extraction rule."""
    tokens: int
    finished: bool
    repeated_grams: float
    """4-grams of words that the answer had said before."""
    grams: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Graded:
    """All answers of one seed to a data set."""

    grades: tuple[Grade, ...]
    distinct_grams: float
    """Different 4-grams of words among all of them."""
    grams: float


class Grader:
    """Reads the answers of one model."""

    def __init__(self, tokenizer: Decodes):
        self._tokenizer = tokenizer

    def grade(
        self,
        rollouts: Sequence[Rollout],
        *,
        seed: int,
        prompts: Mapping[str, str],
        references: Mapping[str, Sequence[str]],
        rule: str | None,
        file: Path,
    ) -> Graded:
        """Grade one seed's answers and write them to `file`; `prompts` are their questions as text."""
        texts = [readable(self._tokenizer, rollout.answer_ids) for rollout in rollouts]
        words = words_as_ids(texts)
        grades = []
        for rollout, text, ids in zip(rollouts, texts, words, strict=True):
            right = references.get(rollout.prompt_id, ())
            repeated, grams = repetition([ids])
            grades.append(
                Grade(
                    prompt_id=rollout.prompt_id,
                    seed=seed,
                    rouge_l=rouge_l(text, right) if right else None,
                    exact_match=exact_match(text, right) if right else None,
                    accuracy=100.0 * is_right(text, right, rule) if right and rule else None,
                    tokens=len(rollout.answer_ids),
                    finished=rollout.finish == "stop",
                    repeated_grams=repeated,
                    grams=grams,
                )
            )
        distinct, total = distinct_n(words)
        _write(rollouts, texts, grades, prompts, references, file)
        return Graded(grades=tuple(grades), distinct_grams=distinct, grams=total)


def _write(
    rollouts: Sequence[Rollout],
    texts: Sequence[str],
    grades: Sequence[Grade],
    prompts: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    file: Path,
) -> None:
    rows = [
        {
            "prompt_id": grade.prompt_id,
            "seed": grade.seed,
            "prompt": prompts.get(grade.prompt_id, ""),
            "answer": text,
            "references": list(references.get(grade.prompt_id, ())),
            "rouge_l": grade.rouge_l,
            "exact_match": grade.exact_match,
            "accuracy": grade.accuracy,
            "tokens": grade.tokens,
            "finish": rollout.finish,
            "answer_ids": rollout.answer_ids,
        }
        for rollout, text, grade in zip(rollouts, texts, grades, strict=True)
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".partial")
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), unfinished)
    unfinished.replace(file)


SCHEMA = pa.schema(
    [
        pa.field("prompt_id", pa.string()),
        pa.field("seed", pa.int32()),
        pa.field("prompt", pa.string()),
        pa.field("answer", pa.string()),
        pa.field("references", pa.list_(pa.string())),
        pa.field("rouge_l", pa.float64()),
        pa.field("exact_match", pa.float64()),
        pa.field("accuracy", pa.float64()),
        pa.field("tokens", pa.int32()),
        pa.field("finish", pa.string()),
        pa.field("answer_ids", pa.list_(pa.int32())),
    ]
)
"""Columns of a file of answers."""

"""Answers as text: scored, and written to the files of a run, an evaluation or a generation. Knows no Ray.

It gets answers through the object store and returns only numbers to the driver.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.metrics import Metrics
from ..common.types import Ids, Passage, Rollout, Scored
from .answer_files import ANSWERS_SCHEMA, SET_SCHEMA, Question, write_part, write_table
from .evaluation.extraction import is_right
from .evaluation.health import distinct_n, repetition, set_health, words_as_ids
from .evaluation.text_scores import exact_match, rouge_l

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerScore:
    """What one answer is worth as text; no tokens in it.

    Scores are in [0, 100], and None where there is nothing to compare with.
    """

    prompt_id: str
    sample: int
    rouge_l: float | None
    exact_match: float | None
    accuracy: float | None
    """100 if its verdict is the right one, by an extraction rule; None without a rule."""
    tokens: int
    finished: bool
    """Whether it ended by itself."""
    repeated_grams: float
    """4-grams of words that occurred earlier in the answer."""
    grams: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedScores:
    """All answers of one seed to a data set."""

    scores: tuple[AnswerScore, ...]
    distinct_grams: float
    """Different 4-grams of words among all of them."""
    grams: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Texts:
    """Answers, decoded and scored."""

    texts: list[str]
    words: list[Ids]
    scores: list[AnswerScore]


class TextSink:
    """Turns token ids into text with one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer

    def score(
        self, rollouts: Sequence[Rollout], references: Mapping[str, Sequence[str]]
    ) -> list[AnswerScore]:
        """Each answer against its prompt's references."""
        return self._score(rollouts, references, None).scores

    def write_set(self, file: Path, number: int, scored: Sequence[Scored], version: int) -> Metrics:
        """Write set `number` of a run; returns its health signals.

        `version` is that of the weights which will learn from it.
        """
        write_table([self._set_row(number, one) for one in scored], SET_SCHEMA, file)
        return set_health(scored, version)

    def write_answers(
        self,
        file: Path,
        rollouts: Sequence[Rollout],
        *,
        seed: int,
        prompts: Mapping[str, str],
        references: Mapping[str, Sequence[str]],
        rule: str | None,
    ) -> SeedScores:
        """Score one seed's answers in an evaluation and write them; `prompts` are their questions as text.

        `rule` is the extraction rule for their verdicts, if the data set has one.
        """
        found = self._score(rollouts, references, rule)
        rows = [
            {
                "prompt_id": score.prompt_id,
                "seed": seed,
                "prompt": prompts.get(score.prompt_id, ""),
                "answer": text,
                "references": list(references.get(score.prompt_id, ())),
                "rouge_l": score.rouge_l,
                "exact_match": score.exact_match,
                "accuracy": score.accuracy,
                "tokens": score.tokens,
                "finish": rollout.finish,
                "answer_ids": rollout.answer_ids,
            }
            for rollout, text, score in zip(rollouts, found.texts, found.scores, strict=True)
        ]
        write_table(rows, ANSWERS_SCHEMA, file)
        distinct, total = distinct_n(found.words)
        return SeedScores(scores=tuple(found.scores), distinct_grams=distinct, grams=total)

    def write_part(
        self, folder: Path, first: int, questions: Mapping[str, Question], rollouts: Sequence[Rollout]
    ) -> int:
        """Write the answers to questions number `first` and those that follow it; returns how many."""
        rows = [self._part_row(questions[rollout.prompt_id], rollout) for rollout in rollouts]
        write_part(folder, first, len(questions), rows)
        return len(rollouts)

    def examples(self, rollouts: Sequence[Rollout], most: int) -> list[tuple[str, int, str]]:
        """(prompt id, sample, text) of the first answers to `most` prompts, for a person to read."""
        first = [rollout for rollout in rollouts if rollout.sample == 0][:most]
        return [(r.prompt_id, r.sample, self._readable(r)) for r in first]

    def _score(
        self, rollouts: Sequence[Rollout], references: Mapping[str, Sequence[str]], rule: str | None
    ) -> _Texts:
        texts = [self._readable(rollout) for rollout in rollouts]
        words, scores = words_as_ids(texts), []
        for rollout, text, ids in zip(rollouts, texts, words, strict=True):
            right = references.get(rollout.prompt_id, ())
            repeated, grams = repetition([ids])
            scores.append(
                AnswerScore(
                    prompt_id=rollout.prompt_id,
                    sample=rollout.sample,
                    rouge_l=rouge_l(text, right) if right else None,
                    exact_match=exact_match(text, right) if right else None,
                    accuracy=100.0 * is_right(text, right, rule) if right and rule else None,
                    tokens=len(rollout.answer_ids),
                    finished=rollout.finish == "stop",
                    repeated_grams=repeated,
                    grams=grams,
                )
            )
        return _Texts(texts=texts, words=words, scores=scores)

    def _readable(self, passage: Passage) -> str:
        """An answer as a person reads it: without special tokens and the space around it."""
        return self._decode(passage.answer_ids, skip_special_tokens=True).strip()

    def _decode(self, ids: Ids, *, skip_special_tokens: bool) -> str:
        return str(self._tokenizer.decode(ids.tolist(), skip_special_tokens=skip_special_tokens))

    def _set_row(self, number: int, scored: Scored) -> dict[str, Any]:
        passage = scored.passage
        row: dict[str, Any] = {
            "set": number,
            "prompt_id": passage.prompt_id,
            "prompt": self._decode(passage.prompt_ids, skip_special_tokens=False),
            "answer": self._readable(passage),
            "prompt_ids": passage.prompt_ids,
            "answer_ids": passage.answer_ids,
            "teacher_logprobs": scored.teacher_logprobs,
        }
        if isinstance(passage, Rollout):
            row |= {
                "sample": passage.sample,
                "behaviour_logprobs": passage.behaviour_logprobs,
                "student_logprobs": passage.student_logprobs,
                "mixed_teacher_logprobs": passage.mixed_teacher_logprobs,
                "weights": np.exp(passage.student_logprobs - passage.behaviour_logprobs),
                "oldest": int(passage.oldest),
                "newest": int(passage.newest),
                "finish": passage.finish,
            }
        return row

    def _part_row(self, question: Question, rollout: Rollout) -> dict[str, Any]:
        # Not stripped: what is learned from these answers is what was drawn.
        text = self._decode(rollout.answer_ids, skip_special_tokens=True)
        if "messages" in question:
            row = {**question, "messages": [*question["messages"], {"role": "assistant", "content": text}]}
        else:
            row = {**question, "output": text}
        return row | {
            "prompt_id": rollout.prompt_id,
            "sample": rollout.sample,
            "tokens": len(rollout.answer_ids),
            "finish": rollout.finish,
        }

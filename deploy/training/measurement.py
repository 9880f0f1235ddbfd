"""What a student is worth on a set of prompts: its own answers, drawn without the teacher, scored.

The reverse KL is exact: summed over the vocabulary at each position of the student's own answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...actors.text_sink import AnswerScore
from ..evaluation.bootstrap import Interval, ratio_interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One answer's scores; reverse KL summed over its tokens, nats."""

    score: AnswerScore
    reverse_kl: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Scores of many answers, and what follows from them."""

    answers: tuple[Measured, ...]
    examples: tuple[str, ...] = ()
    """Texts of the first answers to the first prompts, for a person to look at."""

    @classmethod
    def of(
        cls,
        scores: Sequence[AnswerScore],
        reverse_kl: Mapping[tuple[str, int], float] | None,
        examples: Sequence[str],
    ) -> Measurement:
        """Join text scores with the learner's sums, both by (prompt id, sample number)."""
        return cls(
            examples=tuple(examples),
            answers=tuple(
                Measured(
                    score=s, reverse_kl=None if reverse_kl is None else reverse_kl[s.prompt_id, s.sample]
                )
                for s in scores
            ),
        )

    def rouge_l(self) -> Interval | None:
        """ROUGE-L x 100 over answers whose prompts have references."""
        return self._mean([(a.score.prompt_id, a.score.rouge_l, 1.0) for a in self.answers])

    def exact_match(self) -> Interval | None:
        """Share of answers that equal a reference, x 100."""
        return self._mean([(a.score.prompt_id, a.score.exact_match, 1.0) for a in self.answers])

    def reverse_kl(self) -> Interval | None:
        """Nats per token over all answers."""
        return self._mean([(a.score.prompt_id, a.reverse_kl, float(a.score.tokens)) for a in self.answers])

    def values(self) -> dict[str, float]:
        """By the names of the metrics catalogue; what could not be measured is left out."""
        count = len(self.answers)
        found = {
            "validation/rouge_l": self.rouge_l(),
            "validation/exact_match": self.exact_match(),
            "validation/reverse_kl": self.reverse_kl(),
        }
        return {name: interval.mean for name, interval in found.items() if interval} | {
            "validation/answer_tokens": sum(a.score.tokens for a in self.answers) / count,
            "validation/eos_rate": sum(a.score.finished for a in self.answers) / count,
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values, one record per answer."""
        return {
            "answers": [asdict(a.score) | {"reverse_kl": a.reverse_kl} for a in self.answers],
            "examples": list(self.examples),
        }

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Measurement:
        """The inverse of `to_json`."""
        return cls(
            answers=tuple(
                Measured(
                    score=AnswerScore(**{k: v for k, v in record.items() if k != "reverse_kl"}),
                    reverse_kl=record["reverse_kl"],
                )
                for record in kept["answers"]
            ),
            examples=tuple(kept["examples"]),
        )

    @staticmethod
    def _mean(rows: Sequence[tuple[str, float | None, float]]) -> Interval | None:
        known = [(unit, total, count) for unit, total, count in rows if total is not None]
        if not known:
            return None
        units, totals, counts = zip(*known, strict=True)
        return ratio_interval(units, totals, counts)

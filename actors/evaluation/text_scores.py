"""How close an answer's words are to a reference: ROUGE-L and exact match, as the paper counts them."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rouge_score import rouge_scorer

_PUNCTUATION = str.maketrans("", "", string.punctuation)


@cache
def _scorer() -> rouge_scorer.RougeScorer:
    from rouge_score import rouge_scorer  # a second of imports, and the driver only names these scores

    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """ROUGE-L F-measure with stemming, best reference, in [0, 100]."""
    return 100 * max(_scorer().score(reference, answer)["rougeL"].fmeasure for reference in references)


def normalise(text: str) -> str:
    """Lower case, no punctuation, single spaces."""
    return re.sub(r"\s+", " ", text.lower().translate(_PUNCTUATION)).strip()


def exact_match(answer: str, references: Sequence[str]) -> float:
    """100 if the answer equals a reference after `normalise`, else 0."""
    return 100.0 if normalise(answer) in {normalise(reference) for reference in references} else 0.0

"""What crosses a process boundary: immutable records of numpy arrays and plain values.

Ray maps them from its object store without a copy, so their arrays are read-only. Copy when padding a batch.

    P = prompt tokens, T = answer tokens (the final end-of-sequence token included),
    H = width of the teacher's hidden states.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NewType

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

WeightVersion = NewType("WeightVersion", int)
"""Number of weight publications behind a set of student weights; 0 is the model as loaded."""

FinishReason = Literal["stop", "length", "data"]
"""Why an answer ended: at an end-of-sequence token, at the limit, or it came from a data set."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prompt:
    """A question to answer.

    Example: Prompt(id="train/17", token_ids=np.array([1, 5, 9], np.int32), references=("Paris",))
    """

    id: str
    token_ids: Ids  # [P]
    text: str = ""
    """Instruction and input as a person wrote them, before the template; for reports only."""
    references: tuple[str, ...] = ()
    """Right answers, if known. ROUGE-L counts the best one."""
    first_sample: int = 0
    """Number of its first answer; above 0 where a set holds the prompt once more, so that no two answers of
    a set share their random numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSpec:
    """How a batch of answers is drawn."""

    max_tokens: int
    temperature: float = 1.0
    """Warps each network before the mixing; 0 = greedy (evaluation only)."""
    top_p: float = 1.0
    top_k: int = 0
    """0 = off. As top_p, it cuts each network's distribution before the mixing."""
    teacher_mix: float = 0.0
    """Share of the teacher in the mixture, alpha of equation 4. 0 = the student alone."""
    samples: int = 1
    """Answers drawn for each prompt."""
    seed: int = 0
    """Every answer's own seed comes from this, its prompt's id and its sample number."""
    end_ids: tuple[int, ...] = ()
    """Tokens that end an answer, beside those of the student's generation config; see `AnswerFormat`."""
    ignore_eos: bool = False
    """Draw max_tokens tokens whatever they are; for benchmarks."""
    states: str | None = None
    """Return answers as `Scored`, with the mixed-in teacher's hidden states in this type, at temperature 1;
    None: as `Rollout`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFormat:
    """How the data of a run ends answers, for engines to end theirs alike and for exported students."""

    end_ids: tuple[int, ...] = ()
    """Tokens that end an answer: the tokenizer's end of a sequence, and what a chat template closes turns
    with."""
    chat_template: str | None = None
    """A chat template in place of the tokenizer's own."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Passage:
    """Fixed text to learn from: `answer_ids` are the targets, `prompt_ids` their context.

    An answer from a data set, or a block of plain text (then the prompt is its first token).
    """

    prompt_id: str
    prompt_ids: Ids  # [P], P >= 1
    answer_ids: Ids  # [T], T >= 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rollout(Passage):
    """One sampled answer, and the probabilities it was drawn with, all in nats.

    The student's and the teacher's log-probs are at the sampling temperature but without
    top-p or top-k, so that they are finite for every token that either network can draw.
    """

    sample: int
    """Which of the answers to this prompt; 0 .. samples - 1."""
    behaviour_logprobs: Floats  # [T] log of the mixture p~ that the token was really drawn from
    student_logprobs: Floats  # [T] log q of the weights that drew it
    mixed_teacher_logprobs: Floats | None  # [T] log p inside the engine; None where alpha = 0
    oldest: WeightVersion
    newest: WeightVersion
    """Oldest and newest weights that drew a token; they differ if weights landed mid-answer."""
    finish: FinishReason


def sample_of(passage: Passage) -> int:
    """Which of the answers to its prompt a passage is; 0 for one that was given, not sampled."""
    return passage.sample if isinstance(passage, Rollout) else 0


def answer_name(prompt_id: str, sample: int) -> str:
    """How an answer is called in logs and errors: train/17#0 is the first one to the prompt train/17."""
    return f"{prompt_id}#{sample}"


def answer_names(prompt_ids: Iterable[str], samples: Iterable[int]) -> list[str]:
    """The same for many."""
    return [answer_name(prompt, sample) for prompt, sample in zip(prompt_ids, samples, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """A passage or rollout as the teacher sees it."""

    passage: Passage
    teacher_logprobs: Floats | None
    """[T] log p of the answer's tokens, at the objective's temperature; None where not asked for."""
    plain_teacher_logprobs: Floats | None
    """[T] the same at temperature 1."""
    hidden: npt.NDArray[np.generic] | None  # [T, H] input of the teacher's output layer, or None
    hidden_dtype: str = "float32"
    """numpy has no bfloat16: "bfloat16" says that `hidden` holds its bits as uint16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSummary:
    """All that the driver learns of a batch of passages or rollouts: sizes, never tokens."""

    prompt_ids: tuple[str, ...]
    samples: tuple[int, ...]
    prompt_tokens: tuple[int, ...]
    answer_tokens: tuple[int, ...]
    seconds: float = 0.0
    dropped: tuple[Dropped, ...] = ()
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Name -> (total, count), mergeable by addition; names from common.metrics.CATALOGUE."""

    @classmethod
    def of(
        cls,
        passages: Sequence[Passage],
        *,
        seconds: float = 0.0,
        dropped: Sequence[Dropped] = (),
        metrics: Mapping[str, tuple[float, float]] | None = None,
    ) -> BatchSummary:
        """The sizes of these passages; `seconds` is how long the batch took."""
        return cls(
            prompt_ids=tuple(p.prompt_id for p in passages),
            samples=tuple(sample_of(p) for p in passages),
            prompt_tokens=tuple(len(p.prompt_ids) for p in passages),
            answer_tokens=tuple(len(p.answer_ids) for p in passages),
            seconds=seconds,
            dropped=tuple(dropped),
            metrics=dict(metrics or {}),
        )

    def __len__(self) -> int:
        return len(self.answer_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A sample that will not be used. A drop is a message, never a silence."""

    prompt_id: str
    stage: str
    """Where it was dropped: "prompts", "rollout", "scoring", "learner"."""
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerMeasure:
    """One answer; all but `tokens` in nats and summed over its tokens (`overlap` is a mass, not nats)."""

    prompt_id: str
    sample: int
    """0 for an answer that was given, not sampled."""
    tokens: int
    nll: float
    """-log q of the answer."""
    entropy: float
    """Of the student at each position."""
    reverse_kl: float | None
    """KL(student || teacher), exact; None without the teacher's hidden states, like all that follow."""
    forward_kl: float | None
    """KL(teacher || student), exact."""
    overlap: float | None
    """Sum of min(p, q)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one optimiser step did, over all ranks."""

    step: int
    """Optimiser steps done, this one included."""
    metrics: dict[str, tuple[float, float]]
    """Name -> (total, count); names from common.metrics.CATALOGUE."""
    seconds: float

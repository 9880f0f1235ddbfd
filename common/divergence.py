"""Exact figures of two next-token distributions over the whole vocabulary, measured chunk by chunk.

For measuring only: nothing here is differentiated (learner/fused_loss.py is for that). V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .heads import Head

CHUNK_TOKENS = 256
"""Positions whose logits exist at a time."""

PART_LOGITS = (1 << 20, 1 << 26)
"""Logits that are gone over at a time, on CPUs and on GPUs: few enough for the caches of the one, for the
other so many that calls are few."""

_ROWS = 32
"""Rows per pass where a third [rows, V] tensor is needed for a moment: few enough to stay in the cache."""


def _by_rows(per_row: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor) -> Tensor:
    parts = [per_row(x, y) for x, y in zip(left.split(_ROWS), right.split(_ROWS), strict=True)]
    return torch.cat(parts) if parts else left.new_zeros(0)


def row_dot(left: Tensor, right: Tensor) -> Tensor:
    """Sum over V of left * right: two [n, V] to [n], without a third [n, V].

    Multiplied and then summed pairwise: a matrix product would add 50,000 terms one after the other and lose
    two digits of the small differences that the loss is made of.
    """
    return _by_rows(lambda x, y: (x * y).sum(-1), left, right)


def forward_kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(p || q) in nats: log-probabilities [n, V] of student and teacher to [n]."""
    return _by_rows(lambda q, p: (p.exp() * (p - q)).sum(-1), log_q, log_p)


def reverse_kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(q || p) in nats: log-probabilities [n, V] of student and teacher to [n]."""
    return forward_kl(log_p, log_q)


def shared_mass(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Sum over V of min(p, q), the probability that two distributions have in common: [n, V] to [n]."""
    return _by_rows(lambda q, p: torch.minimum(q, p).exp().sum(-1), log_q, log_p)


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """Exact figures of N positions, all [N]; those of both networks together are None without a teacher."""

    logprobs: Tensor
    """log q of the drawn token, nats."""
    entropy: Tensor
    """Of the student's distribution, nats."""
    reverse_kl: Tensor | None = None
    """KL(q || p), nats."""
    forward_kl: Tensor | None = None
    """KL(p || q), nats."""
    overlap: Tensor | None = None
    """Sum of min(p, q), from 0 to 1."""
    teacher_logprobs: Tensor | None = None
    """log p of the drawn token, nats."""


@torch.no_grad()
def measure(
    hidden: Tensor,
    student: Head,
    ids: Tensor,
    *,
    teacher_hidden: Tensor | None = None,
    teacher: Head | None = None,
    temperature: float = 1.0,
    chunk_tokens: int = CHUNK_TOKENS,
) -> Measured:
    """Everything that N positions tell about student and teacher: hidden [N, H], drawn ids [N] to [N] each.

    Both heads must be cut to one vocabulary. Float32 at least, whatever the weights are in.
    """
    names = ["logprobs", "entropy"]
    if teacher is not None and teacher_hidden is not None:
        names += ["reverse_kl", "forward_kl", "overlap", "teacher_logprobs"]
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    dtype = torch.promote_types(student.weight.dtype, torch.float32)
    for start in range(0, len(hidden), chunk_tokens):
        tokens = slice(start, start + chunk_tokens)
        # No name here may hold a chunk's log-probs while the next one's are made.
        figures = _chunk_figures(
            _log_softmax(student, hidden[tokens], temperature, dtype),
            None
            if teacher is None or teacher_hidden is None
            else _log_softmax(teacher, teacher_hidden[tokens], temperature, dtype),
            ids[tokens, None],
        )
        for name, values in figures.items():
            parts[name].append(values)
    empty = hidden.new_zeros(0, dtype=dtype)
    return Measured(**{name: torch.cat(values) if values else empty for name, values in parts.items()})


def _chunk_figures(log_q: Tensor, log_p: Tensor | None, drawn: Tensor) -> dict[str, Tensor]:
    figures = {
        "logprobs": log_q.gather(1, drawn)[:, 0],
        "entropy": _by_rows(lambda q, _: -(q.exp() * q).sum(-1), log_q, log_q),
    }
    if log_p is not None:
        figures |= {
            "teacher_logprobs": log_p.gather(1, drawn)[:, 0],
            "reverse_kl": reverse_kl(log_q, log_p),
            "forward_kl": forward_kl(log_q, log_p),
            "overlap": shared_mass(log_q, log_p),
        }
    return figures


@torch.no_grad()
def drawn_logprobs(
    hidden: Tensor, head: Head, ids: Tensor, *, temperatures: Sequence[float] = (1.0,)
) -> list[Tensor]:
    """Log-probability of each drawn token: hidden [N, H] and ids [N] to [N] for each temperature, in float32.

    One product for all temperatures, a part of the vocabulary at a time and its logits used while the caches
    hold them: sum of exp(z) is kept as exp(top) sum exp(z - top).
    """
    dtype = torch.promote_types(head.weight.dtype, torch.float32)
    size = max(1, min(head.vocabulary, PART_LOGITS[hidden.device.type == "cuda"] // max(1, len(hidden))))
    drawn = hidden.new_empty(len(hidden), dtype=dtype)
    tops = [torch.full_like(drawn, -torch.inf) for _ in temperatures]
    sums = [torch.zeros_like(drawn) for _ in temperatures]
    for start in range(0, head.vocabulary, size):
        words = slice(start, min(start + size, head.vocabulary))
        logits = head.part(words).scaled_logits(hidden, 1.0, dtype)
        inside = (ids >= start) & (ids < words.stop)
        drawn[inside] = logits[inside, ids[inside] - start]
        before = 1.0
        for index, temperature in enumerate(temperatures):
            logits = logits if temperature == before else logits.mul_(before / temperature)
            before = temperature
            top = torch.maximum(tops[index], logits.amax(1))
            here = (logits - top[:, None]).exp_().sum(1)
            sums[index] = sums[index] * (tops[index] - top).exp() + here
            tops[index] = top
    return [
        drawn / temperature - top - total.log()
        for temperature, top, total in zip(temperatures, tops, sums, strict=True)
    ]


def _log_softmax(head: Head, hidden: Tensor, temperature: float, dtype: torch.dtype) -> Tensor:
    logits = head.scaled_logits(hidden, temperature, dtype)
    return torch.log_softmax(logits, -1, out=logits)

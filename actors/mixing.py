"""The distribution that answers are drawn from: student and teacher, each warped, then mixed.

Equation 4 of the MiniLLM paper (arXiv 2306.08543): p~ = alpha p + (1 - alpha) q. Temperature, top-k and
top-p warp each network's own distribution *before* the mixing: warping afterwards would draw from
p~^(1/temperature), another distribution. Pure functions of tensors; vLLM is not known here.

    N = rows (one per sequence), V = vocabulary. All log-probs are in nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 256
"""Tokens whose mass is summed before a draw looks inside."""


def temper(logits: Tensor, temperature: float) -> Tensor:
    """Log-probs [N, V] of logits [N, V] at a temperature above 0, in float32."""
    return torch.log_softmax(logits.float() / temperature, -1)


def truncate(log_probs: Tensor, top_p: float = 1.0, top_k: int = 0) -> Tensor:
    """Log-probs [N, V] cut to their best tokens and renormalised; -inf on the rest.

    First the `top_k` best are kept (0 = all), then, of what is left, the smallest set of best tokens
    whose mass reaches `top_p`; never fewer than one. Among equals the order of `torch.sort` decides.
    """
    words = log_probs.shape[-1]
    top_k = min(top_k, words) if top_k > 0 else words
    if top_k == words and top_p >= 1:
        return log_probs
    best, ids = torch.topk(log_probs, top_k, -1)
    best = best - best.logsumexp(-1, keepdim=True)
    if top_p < 1:
        mass = best.exp()
        mass_before = mass.cumsum(-1) - mass
        beyond = mass_before >= top_p
        beyond[..., 0] = False
        best = best.masked_fill(beyond, -torch.inf)
        best = best - best.logsumexp(-1, keepdim=True)
    return torch.full_like(log_probs, -torch.inf).scatter(-1, ids, best)


def warp(logits: Tensor, temperature: float, top_p: float = 1.0, top_k: int = 0) -> Tensor:
    """Log-probs [N, V] that one network is sampled with.

    Temperature 0 is the limit: all mass on the best token (the first of equals).
    """
    if temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.full_like(logits, -torch.inf, dtype=torch.float32).scatter(-1, best, 0.0)
    return truncate(temper(logits, temperature), top_p, top_k)


def mix(log_q: Tensor, log_p: Tensor, alpha: float) -> Tensor:
    """log p~ = log(alpha p + (1 - alpha) q), equation 4; exactly log q at alpha 0 and log p at 1.

    Any shape; -inf stands for a token that a network cannot draw.
    """
    if alpha == 0:
        return log_q
    if alpha == 1:
        return log_p
    return torch.logaddexp(log_q + math.log1p(-alpha), log_p + math.log(alpha))


def draw(log_probs: Tensor, uniforms: Tensor) -> Tensor:
    """Token ids [N] drawn from log-probs [N, V] with one uniform number of [0, 1) each, [N] float64.

    The inverse of the cumulative distribution, summed in float64 block by block: a token of no mass is
    never drawn, and one number per row decides, so that a row's draw does not depend on its neighbours.
    """
    rows, words = log_probs.shape
    block = min(BLOCK, words)
    probs = log_probs.new_zeros(rows, -(-words // block) * block, dtype=torch.float32)
    torch.exp(log_probs, out=probs[:, :words])
    blocks = probs.view(rows, -1, block)
    mass = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    target = _below(uniforms.to(mass.device) * mass[:, -1], mass[:, -1])
    which = (mass <= target[:, None]).sum(-1)
    mass_before = torch.nn.functional.pad(mass, (1, 0)).gather(-1, which[:, None])[:, 0]
    inside = blocks[torch.arange(rows, device=which.device), which].double().cumsum(-1)
    rest = _below(target - mass_before, inside[:, -1])
    return which * block + (inside <= rest[:, None]).sum(-1)


def _below(value: Tensor, bound: Tensor) -> Tensor:
    # Rounding may lift a number to the bound, behind which there is no token left to draw.
    return torch.minimum(value, torch.nextafter(bound, torch.zeros_like(bound)))


@dataclass(frozen=True, slots=True)
class Rows:
    """One step's distributions [N, V]: what is drawn from, and what each network thinks."""

    behaviour: Tensor
    """log p~ after temperature, top-k and top-p; -inf for what cannot be drawn."""
    student: Tensor
    """log q at the sampling temperature, uncut: finite wherever the logits are."""
    teacher: Tensor | None
    """log p, likewise; None where alpha is 0."""

    def of(self, ids: Tensor) -> Tensor:
        """log p~, log q and log p of one token per row, [N, 3]; NaN where there is no teacher."""
        picked = [rows.gather(-1, ids[:, None]) for rows in (self.behaviour, self.student)]
        if self.teacher is None:
            picked.append(torch.full_like(picked[0], torch.nan))
        else:
            picked.append(self.teacher.gather(-1, ids[:, None]))
        return torch.cat(picked, -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """How the two networks become one distribution.

    At temperature 0 each network puts all its mass on its best token, so the student alone answers
    greedily with log p~ = 0. The student's and the teacher's own log-probs are then those at
    temperature 1, since at 0 they would say nothing.
    """

    teacher_mix: float = 0.0
    """alpha of equation 4."""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def rows(self, student_logits: Tensor, teacher_logits: Tensor | None = None) -> Rows:
        """The step's distributions from both networks' logits [N, V]; the teacher's may miss at alpha 0."""
        log_q, warped_q = self._one(student_logits)
        if self.teacher_mix == 0 or teacher_logits is None:
            assert self.teacher_mix == 0, "a mixture needs the teacher's logits"
            return Rows(warped_q, log_q, None)
        log_p, warped_p = self._one(teacher_logits)
        return Rows(mix(warped_q, warped_p, self.teacher_mix), log_q, log_p)

    def _one(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        if self.temperature == 0:
            return temper(logits, 1.0), warp(logits, 0.0)
        log_probs = temper(logits, self.temperature)
        return log_probs, truncate(log_probs, self.top_p, self.top_k)

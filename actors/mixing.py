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
from torch.nn import functional

BLOCK = 256
"""Words of the vocabulary that are handled as one block."""


def temper(logits: Tensor, temperature: float) -> Tensor:
    """Log-probs [N, V] of logits [N, V] at a temperature above 0, in float32."""
    logits = logits.float()
    return torch.log_softmax(logits if temperature == 1 else logits / temperature, -1)


def truncate(log_probs: Tensor, top_p: float = 1.0, top_k: int = 0) -> Tensor:
    """Log-probs [N, V] cut to their best tokens and renormalised; -inf on the rest.

    First the `top_k` best are kept (0 = all), then, of what is left, the smallest set of best tokens
    whose mass reaches `top_p`; never fewer than one. Among equals the order of `torch.topk` decides.
    """
    words = log_probs.shape[-1]
    if 0 < top_k < words:
        best, ids = torch.topk(log_probs, top_k, -1)
        best = best - best.logsumexp(-1, keepdim=True)
    elif top_p < 1:
        best, ids = _enough(log_probs, top_p)
    else:
        return log_probs
    if top_p < 1:
        mass = best.exp()
        beyond = mass.cumsum(-1) - mass >= top_p
        beyond[..., 0] = False
        best = best.masked_fill(beyond, -torch.inf)
        best = best - best.logsumexp(-1, keepdim=True)
    return torch.full_like(log_probs, -torch.inf).scatter(-1, ids, best)


def _enough(log_probs: Tensor, mass: float) -> tuple[Tensor, Tensor]:
    # The best tokens, sorted, so many that they hold the mass in every row: seldom the whole vocabulary,
    # which takes ten times as long to sort.
    words = log_probs.shape[-1]
    count = BLOCK
    while count < words:
        best, ids = torch.topk(log_probs, count, -1)
        if bool((best.exp().sum(-1) >= mass).all()):
            return best, ids
        count *= 8
    return torch.topk(log_probs, words, -1)


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


def draw(mass: Tensor, uniforms: Tensor) -> Tensor:
    """Token ids [N] drawn from mass [N, V] with one uniform number of [0, 1) each, [N] float64.

    Rows need not add up to 1. The inverse of the cumulative distribution, looked up block by block: a
    token of no mass is never drawn, and one number per row decides, so that a row's draw does not
    depend on its neighbours.
    """
    words = mass.shape[-1]
    block = min(BLOCK, words)
    blocks = functional.pad(mass, (0, -words % block)).unflatten(-1, (-1, block))
    sums = blocks.sum(-1).double().cumsum(-1)
    target = _below(uniforms.to(mass.device) * sums[:, -1], sums[:, -1])
    which = (sums <= target[:, None]).sum(-1)
    before = functional.pad(sums, (1, 0)).gather(-1, which[:, None])[:, 0]
    inside = blocks[torch.arange(len(mass), device=mass.device), which].double().cumsum(-1)
    rest = _below(target - before, inside[:, -1])
    return which * block + (inside <= rest[:, None]).sum(-1)


def _below(value: Tensor, bound: Tensor) -> Tensor:
    # Rounding may lift a number to the bound, behind which there is no token left to draw.
    return torch.minimum(value, torch.nextafter(bound, torch.zeros_like(bound)))


@dataclass(frozen=True, slots=True)
class Network:
    """One network's distributions [N, V] in a step."""

    log_probs: Tensor
    """At the sampling temperature, uncut: finite wherever the logits are."""
    warped: Tensor
    """What the network puts into the mixture; -inf for what it cannot draw."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one step's tokens are drawn from."""

    mass: Tensor  # [N, V] p~
    alpha: float
    student: Network
    teacher: Network | None
    """None where alpha is 0."""

    def log_probs(self, ids: Tensor) -> Tensor:
        """log p~, log q and log p of one token per row, [N, 3]; NaN where there is no teacher."""

        def of(rows: Tensor) -> Tensor:
            return rows.gather(-1, ids[:, None])

        log_q = of(self.student.log_probs)
        if self.teacher is None:
            return torch.cat([of(self.student.warped), log_q, torch.full_like(log_q, torch.nan)], -1)
        mixed = mix(of(self.student.warped), of(self.teacher.warped), self.alpha)
        return torch.cat([mixed, log_q, of(self.teacher.log_probs)], -1)


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

    def step(self, student_logits: Tensor, teacher_logits: Tensor | None = None) -> Step:
        """The step's distributions from both networks' logits [N, V]; the teacher's are None at alpha 0."""
        alpha, student = self.teacher_mix, self._warp(student_logits)
        if teacher_logits is None:
            assert alpha == 0, "a mixture needs the teacher's logits"
            return Step(student.warped.exp(), alpha, student, None)
        teacher = self._warp(teacher_logits)
        # The sum itself, not the exponential of `mix`, which costs several times as much for a whole
        # vocabulary and matters only for tokens that are hardly ever drawn.
        mass = student.warped.exp().mul_(1 - alpha).add_(teacher.warped.exp(), alpha=alpha)
        return Step(mass, alpha, student, teacher)

    def _warp(self, logits: Tensor) -> Network:
        if self.temperature == 0:
            return Network(temper(logits, 1.0), warp(logits, 0.0))
        log_probs = temper(logits, self.temperature)
        return Network(log_probs, truncate(log_probs, self.top_p, self.top_k))

"""The family of divergences between teacher p and student q at one position, with slopes in closed form.

Each takes log q and log p [n, V] and gives values [n] in nats and the slope in the student's logits z. With
h = q dD/dq, the derivative in a free log q, that slope is h - q sum(h); what is q times a constant drops
out of it and is left away. Both inputs are overwritten.

    forward_kl        KL(p || q)                                   reverse_kl   KL(q || p)
    jeffreys          KL(p || q) + KL(q || p)                      total_variation   1/2 sum |p - q|
    jsd               b KL(p || m) + (1-b) KL(q || m), m = b p + (1-b) q              GKD, arXiv 2306.13649
    skew_kl           KL(p || a p + (1-a) q)                                    DistiLLM, arXiv 2402.03898
    skew_reverse_kl   KL(q || (1-a) p + a q)                                    DistiLLM
    akl               head share x KL(p || q) + tail share x KL(q || p)              AKL, arXiv 2404.02657
    atkd              target and other words apart, easy tokens by the others alone  ATKD, arXiv 2402.11890
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..common import divergence as exact
from ..common.config.objective import DIVERGENCES, ObjectiveConfig
from ..common.divergence import row_dot
from ..common.plugins import find_plugin

GradFn = Callable[[Tensor, Tensor], Tensor]
"""(d loss/d divergence [n, 1], d loss/d log q of the drawn token [n, 1]) to d loss/dz [n, V], still without
the part of the drawn token's own z."""
DivergenceFn = Callable[[Tensor, Tensor, Tensor, slice], tuple[Tensor, GradFn]]
"""(log q [n, V], log p [n, V], drawn ids [n, 1], which of all tokens these are) to (values [n], slope)."""


@dataclass(frozen=True, eq=False)
class Divergence:
    """One of the family, by the name that settings and metrics give it."""

    name: str
    walk: DivergenceFn


def divergence_of(
    settings: ObjectiveConfig, hard: Tensor | None = None, plugins: tuple[str, ...] = ()
) -> Divergence:
    """The divergence that `kd` minimises, ours or a plugin's.

    `hard` bool [N]: which tokens are, for atkd alone. `plugins`: modules that may offer one. Raises
    ConfigError for a name that nobody offers.
    """
    name = settings.divergence
    if name == "atkd":
        if hard is None:
            raise ValueError("atkd needs to know which tokens are hard")
        return Divergence(name, partial(_atkd, hard))
    if name not in DIVERGENCES:
        return Divergence(name, _plugin(name, plugins))
    walks: dict[str, DivergenceFn] = {
        "forward_kl": _forward_kl,
        "reverse_kl": _reverse_kl,
        "jeffreys": _jeffreys,
        "jsd": partial(_jsd, settings.jsd_beta),
        "skew_kl": partial(_skew_kl, settings.skew) if settings.skew else _forward_kl,
        "skew_reverse_kl": partial(_skew_reverse_kl, settings.skew) if settings.skew else _reverse_kl,
        "total_variation": _total_variation,
        "akl": partial(_akl, settings.akl_mass),
    }
    return Divergence(name, walks[name])


@functools.cache
def _plugin(name: str, modules: tuple[str, ...]) -> DivergenceFn:
    return find_plugin("divergences", name, modules)


def by_autograd(value: Callable[[Tensor, Tensor], Tensor]) -> DivergenceFn:
    """A divergence from its value alone: log q and log p [n, V] to values [n], written with torch.

    For plugins that have no gradient in closed form. Takes three more tensors [n, V] of memory than one that
    has, and about twice its time.
    """

    def divergence(log_q: Tensor, log_p: Tensor, ids: Tensor, tokens: slice) -> tuple[Tensor, GradFn]:
        with torch.enable_grad():
            logits = log_q.detach().clone().requires_grad_()  # log q is one set of logits of q
            values = value(torch.log_softmax(logits, -1), log_p)
            (slope,) = torch.autograd.grad(values.sum(), logits)
        q = log_q.exp_()
        return values.detach(), lambda by_value, by_logprob: slope.mul_(by_value).addcmul_(
            q, by_logprob, value=-1.0
        )

    return divergence


@dataclass(frozen=True)
class DoubtSplit:
    """ATKD's easy and hard tokens of one optimiser step, by the teacher's doubt: 1 - p of the answer's token.

    Taken over all ranks and micro-batches, where the released code takes the median of each micro-batch.
    """

    median: float
    num_easy: int
    num_hard: int

    @classmethod
    def of(cls, doubts: Tensor) -> DoubtSplit:
        """`doubts` [N] of the whole step; half of them are hard, as are those that equal the median."""
        median = float(doubts.double().quantile(0.5)) if len(doubts) else 0.0
        hard = int((doubts.double() >= median).sum())
        return cls(median, len(doubts) - hard, hard)

    def hard(self, doubts: Tensor) -> Tensor:
        """bool [n]: which of these tokens are hard."""
        return doubts.double() >= self.median

    def weights(self, hard: Tensor, easy_weight: float) -> Tensor:
        """What each token weighs [n], so that the mean over all tokens of the step is ATKD's loss.

        That is easy_weight x mean over the easy + (1 - easy_weight) x mean over the hard tokens; a kind
        that the step has none of adds nothing.
        """
        count = self.num_easy + self.num_hard
        of_hard = (1 - easy_weight) * count / max(self.num_hard, 1)
        of_easy = easy_weight * count / max(self.num_easy, 1)
        return torch.where(hard, of_hard, of_easy)


def _reverse_kl(log_q: Tensor, log_p: Tensor, ids: Tensor, tokens: slice) -> tuple[Tensor, GradFn]:
    difference = torch.sub(log_q, log_p, out=log_p)
    q = log_q.exp_()
    value = row_dot(q, difference)

    def slope(by_kl: Tensor, by_logprob: Tensor) -> Tensor:
        constant = -(by_kl * value[:, None] + by_logprob)
        return q.mul_(torch.addcmul(constant, difference, by_kl, out=difference))

    return value, slope


def _forward_kl(log_q: Tensor, log_p: Tensor, ids: Tensor, tokens: slice) -> tuple[Tensor, GradFn]:
    value = exact.forward_kl(log_q, log_p)
    return value, _forward_slope(log_q.exp_(), log_p.exp_())


def _cross_entropy(log_q: Tensor, log_p: Tensor, ids: Tensor, tokens: slice) -> tuple[Tensor, GradFn]:
    p = log_p.exp_()
    value = -row_dot(p, log_q)
    return value, _forward_slope(log_q.exp_(), p)


def _forward_slope(q: Tensor, p: Tensor) -> GradFn:
    return lambda by_kl, by_logprob: q.mul_(by_kl - by_logprob).addcmul_(p, by_kl, value=-1.0)


REVERSE_KL = Divergence("reverse_kl", _reverse_kl)
CROSS_ENTROPY = Divergence("cross_entropy", _cross_entropy)
"""-sum p log q: the forward KL and the teacher's entropy, of which the student cannot change the latter."""


def _free_slope(h: Tensor, q: Tensor) -> GradFn:
    """The slope that follows from h = q dD/dq."""
    total = h.sum(-1, keepdim=True)
    return lambda by_value, by_logprob: h.mul_(by_value).addcmul_(
        q, by_value * total + by_logprob, value=-1.0
    )


def _jeffreys(log_q: Tensor, log_p: Tensor, ids: Tensor, tokens: slice) -> tuple[Tensor, GradFn]:
    difference, p = log_q - log_p, log_p.exp_()
    q = log_q.exp_()
    value = row_dot(q - p, difference)
    return value, _free_slope(difference.mul_(q).sub_(p), q)


def _jsd(beta: float, log_q: Tensor, log_p: Tensor, ids: Tensor, tokens: slice) -> tuple[Tensor, GradFn]:
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    of_teacher = row_dot(log_p.exp(), log_p.sub_(log_m))
    from_m = torch.sub(log_q, log_m, out=log_m)
    q = log_q.exp_()
    value = beta * of_teacher + (1 - beta) * row_dot(q, from_m)
    return value, _free_slope(from_m.mul_(q).mul_(1 - beta), q)


def _skew_kl(skew: float, log_q: Tensor, log_p: Tensor, ids: Tensor, tokens: slice) -> tuple[Tensor, GradFn]:
    log_m = torch.logaddexp(log_p + math.log(skew), log_q + math.log1p(-skew))
    p = log_p.exp()
    value = row_dot(p, log_p.sub_(log_m))
    fraction = torch.sub(log_q, log_m, out=log_m).exp_()
    return value, _free_slope(p.mul_(fraction).mul_(skew - 1), log_q.exp_())


def _skew_reverse_kl(
    skew: float, log_q: Tensor, log_p: Tensor, ids: Tensor, tokens: slice
) -> tuple[Tensor, GradFn]:
    log_m = torch.logaddexp(log_p + math.log1p(-skew), log_q + math.log(skew))
    from_m = torch.sub(log_q, log_m, out=log_m)
    q = log_q.exp_()
    value = row_dot(q, from_m)
    fraction = torch.exp(from_m, out=log_p).mul_(-skew)
    return value, _free_slope(from_m.add_(fraction).mul_(q), q)


def _total_variation(log_q: Tensor, log_p: Tensor, ids: Tensor, tokens: slice) -> tuple[Tensor, GradFn]:
    q = log_q.exp_()
    gap = torch.sub(q, log_p.exp_(), out=log_p)
    value = 0.5 * gap.abs().sum(-1)
    return value, _free_slope(gap.sign_().mul_(q).mul_(0.5), q)


def _akl(mass: float, log_q: Tensor, log_p: Tensor, ids: Tensor, tokens: slice) -> tuple[Tensor, GradFn]:
    """Head = the teacher's likeliest words up to `mass`, the likeliest always among them.

    The word that crosses `mass` belongs to the tail, as in the released code. The shares are constants.
    """
    difference, p = log_q - log_p, log_p.exp_()
    q = log_q.exp_()
    ordered, order = torch.sort(p, dim=-1, descending=True, stable=True)
    in_head = ordered.cumsum(-1) <= mass
    in_head[:, 0] = True
    head = torch.zeros_like(in_head).scatter_(1, order, in_head)
    gap = (p - q).abs()
    of_head, whole = (gap * head).sum(-1, keepdim=True), gap.sum(-1, keepdim=True)
    # Equal distributions have no gap to share out, and no divergence either way.
    fraction = torch.where(whole > 0, of_head / whole.clamp(min=torch.finfo(whole.dtype).tiny), 0.5)
    forward, reverse = -row_dot(p, difference), row_dot(q, difference)
    value = fraction[:, 0] * forward + (1 - fraction[:, 0]) * reverse
    h = difference.mul_(q).mul_(1 - fraction).addcmul_(p, fraction, value=-1.0)
    return value, _free_slope(h, q)


def _atkd(hard: Tensor, log_q: Tensor, log_p: Tensor, ids: Tensor, tokens: slice) -> tuple[Tensor, GradFn]:
    """KL of "the token or another", for hard tokens, + KL among the other words; no factor of doubt."""
    is_hard = hard[tokens, None].to(log_q.dtype)
    token_q, token_p = log_q.gather(1, ids), log_p.gather(1, ids)
    q = log_q.exp()
    others_q, rest_q = _without(log_q, ids)
    others_p, rest_p = _without(log_p, ids)
    difference = (others_p - others_q).scatter_(1, ids, 0.0)
    others_p, others_q = others_p.exp_(), others_q.exp_()
    among_others = row_dot(others_p, difference)
    of_token = token_p.exp() * (token_p - token_q) + rest_p.exp() * (rest_p - rest_q)
    value = among_others + (is_hard * of_token)[:, 0]
    moved = is_hard * (token_p.exp() - token_q.exp())
    in_z = others_q.mul_(1 + moved).sub_(others_p).scatter_(1, ids, -moved)

    def slope(by_value: Tensor, by_logprob: Tensor) -> Tensor:
        return in_z.mul_(by_value).addcmul_(q, by_logprob, value=-1.0)

    return value, slope


def _without(log_probs: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """(log-probabilities of all words but `ids`, made to sum to 1; log of what they summed to [n, 1])."""
    others = log_probs.scatter_(1, ids, -math.inf)
    rest = others.logsumexp(-1, keepdim=True)
    return others.sub_(rest), rest

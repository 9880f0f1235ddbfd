"""Rewards, returns and importance weights of answers: pure functions of padded tensors.

Everywhere B = answers, T = answer slots; token t of an answer counts from 1, its slot is t - 1. A mask
[B, T] is true on an answer's own tokens and is made from lengths, never from token ids. Equation numbers
are those of arXiv:2306.08543. Nothing here is differentiated: rewards and returns are constants of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

WHITENING_EPSILON = 1e-8
"""Added to the variance before its root, as in the reference code."""


def answer_mask(lengths: Tensor, slots: int) -> Tensor:
    """Which slots hold an answer's own tokens: [B] lengths to a bool [B, slots]."""
    return torch.arange(slots, device=lengths.device) < lengths[:, None]


def rewards(
    teacher_logprobs: Tensor,
    student_logprobs: Tensor,
    mask: Tensor,
    *,
    scaling: float = 1.0,
    clip: float | None = None,
) -> Tensor:
    """The per-token quality r_t = log p - log q at sampling time (above equation 2), [B, T], nats.

    `scaling` divides, then `clip` bounds the absolute value; both are the reference's and absent from the
    paper. 0 outside the mask.
    """
    reward = (teacher_logprobs - student_logprobs) / scaling
    if clip is not None:
        reward = reward.clamp(-clip, clip)
    return torch.where(mask, reward, 0.0)


def reward_to_go(reward: Tensor, gamma: float = 1.0) -> Tensor:
    """R_t = sum over t' >= t of gamma^(t'-t) r_t', [B, T]; the paper's gamma is 1."""
    result = torch.empty_like(reward)
    ahead = torch.zeros_like(reward[:, :1])
    for slot in range(reward.shape[1] - 1, -1, -1):
        ahead = reward[:, slot : slot + 1] + gamma * ahead
        result[:, slot : slot + 1] = ahead
    return result


def ahead_of(values: Tensor) -> Tensor:
    """The value at the next token, 0 at the last: turns R_t into R_{t+1}, [B, T]."""
    return torch.nn.functional.pad(values[:, 1:], (0, 1))


def tokens_left(mask: Tensor) -> Tensor:
    """How many tokens an answer still has from t on, t included: T - t + 1, and 0 outside, int64 [B, T]."""
    return mask.long().flip(-1).cumsum(-1).flip(-1) * mask


def returns(reward: Tensor, mask: Tensor, *, gamma: float, ahead: bool, length_norm: bool) -> Tensor:
    """What the long-term term weighs log q with: R_{t+1} (equation 3) or R_t, mean or sum, [B, T].

    ahead=True is the paper's R_{t+1}: the token's own reward belongs to the single-step term. ahead=False is
    the reference's R_t. With `length_norm` the sum is divided by its number of terms: T - t for R_{t+1}
    (equation 6 prints T - t - 1, which is zero at t = T - 1), T - t + 1 for R_t. Without it short answers
    win, since R grows with what is left to say. 0 where there is nothing to sum, and outside the mask.
    """
    total, terms = reward_to_go(reward, gamma), tokens_left(mask)
    if ahead:
        total, terms = ahead_of(total), ahead_of(terms)
    if length_norm:
        total = total / terms.clamp(min=1)
    return torch.where(mask, total, 0.0)


@dataclass(frozen=True, slots=True)
class Moments:
    """Mergeable sums from which a mean and an unbiased variance come; ranks add them and stay exact."""

    total: float = 0.0
    square_total: float = 0.0
    slots: float = 0.0

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.total + other.total, self.square_total + other.square_total, self.slots + other.slots
        )

    def as_list(self) -> list[float]:
        """The three sums, to be added over ranks in float64; `Moments(*values)` reads them back."""
        return [self.total, self.square_total, self.slots]

    @property
    def mean(self) -> float:
        """Mean over all slots."""
        return self.total / max(self.slots, 1.0)

    @property
    def variance(self) -> float:
        """Unbiased variance over all slots; 0 for fewer than two."""
        if self.slots < 2:
            return 0.0
        return max(self.square_total - self.total * self.mean, 0.0) / (self.slots - 1)


def moments(values: Tensor, slots: int) -> Moments:
    """Sums of `values` (0 outside the mask) over `slots` positions, padding counted as zeros.

    `slots` = answers x max_new_tokens of these answers, so that the result does not depend on how far a
    batch happens to be padded.
    """
    exact = values.double()
    return Moments(exact.sum().item(), exact.square().sum().item(), float(slots))


def merged(parts: Iterable[Moments]) -> Moments:
    """The moments of all parts together."""
    return sum(parts, Moments())


def whitened(values: Tensor, statistics: Moments) -> Tensor:
    """Zero mean and unit variance under the statistics of the whole optimiser step, [B, T].

    Outside the mask this is the whitened zero, as in the reference; no loss reads it.
    """
    return (values - statistics.mean) / math.sqrt(statistics.variance + WHITENING_EPSILON)


def importance_weights(student_logprobs: Tensor, behaviour_logprobs: Tensor, mask: Tensor) -> Tensor:
    """The per-token weight w_t = q / p~ (equation 5, approximated), [B, T]; 1 outside the mask."""
    return torch.where(mask, student_logprobs - behaviour_logprobs, 0.0).exp()


def per_decision_weights(
    student_logprobs: Tensor,
    behaviour_logprobs: Tensor,
    mask: Tensor,
    *,
    include_current: bool,
    cap: float | None = None,
) -> Tensor:
    """Products of q / p~ over an answer's tokens up to t (or before t), float64 [B, T]; 0 outside the mask.

    include_current=True: over s <= t, the weight of the reward r_t. False: over s < t, the weight of the
    single-step term at t. Summed in log space and in float64, since 1.25^512 does not fit in float32;
    `cap` bounds each product from above.
    """
    log_ratio = torch.where(mask, (student_logprobs - behaviour_logprobs).double(), 0.0)
    log_weight = log_ratio.cumsum(-1)
    if not include_current:
        log_weight = torch.nn.functional.pad(log_weight[:, :-1], (1, 0))
    if cap is not None:
        log_weight = log_weight.clamp(max=math.log(cap))
    return torch.where(mask, log_weight.exp(), 0.0)

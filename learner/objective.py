"""The loss of one answer token: the paper's equations, or its released code, by the settings of `objective`.

    minillm       equations 3-7: importance-weighted single-step reverse KL + policy gradient on what follows
    sft           -log q of the given answer's tokens
    kd            an exact divergence between p and q at each position of the answers (see divergences)

Two stages. `token_constants` makes what stays fixed while q moves within an optimiser step (returns, log p~);
`token_loss` turns these and the exact single-step KL into a loss per token, differentiable in the KL and in
log q alone. The optimiser step's loss is the sum of token losses over all ranks and micro-batches divided by
one `loss_count`, so any split gives the same gradient. Equation numbers are those of arXiv:2306.08543.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..common.config.objective import ObjectiveConfig
from ..common.errors import ConfigError
from .divergences import CROSS_ENTROPY, REVERSE_KL, Divergence, divergence_of
from .returns import (
    Moments,
    ahead_of,
    answer_mask,
    moments,
    per_decision_weights,
    returns,
    reward_to_go,
    rewards,
    whitened,
)

TokenLoss = Callable[[Tensor, Tensor, slice], tuple[Tensor, dict[str, Tensor]]]
"""(divergence [n], log q [n], which tokens) to (loss [n], detached figures [n] by name)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """Whole answers, padded; B = answers, T = slots. What slots beyond an answer's length hold is ignored."""

    lengths: Tensor
    """int64 [B], the final end-of-sequence token included."""
    behaviour_logprobs: Tensor
    """[B, T] log p~: of the distribution that the token was drawn from, nats."""
    student_logprobs: Tensor
    """[B, T] log q of the student at sampling time."""
    teacher_logprobs: Tensor
    """[B, T] log p at the temperature that `reward_temperature` names."""

    @property
    def mask(self) -> Tensor:
        """bool [B, T], true on the answers' own tokens."""
        return answer_mask(self.lengths, self.behaviour_logprobs.shape[1])


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenConstants:
    """What one token's loss needs besides q: all detached, all of one shape ([B, T], or [N] when packed)."""

    advantage: Tensor
    """The return that weighs the policy gradient; under per-decision weights these are inside."""
    behaviour_logprobs: Tensor
    student_logprobs: Tensor
    """log q at sampling time."""
    prefix_weight: Tensor
    """Per-decision weight of the single-step term; 1 in the other modes."""

    def __getitem__(self, tokens: slice | Tensor) -> TokenConstants:
        """A slice of packed constants, or a mask of padded ones: `constants[mask]` packs, row by row."""
        return TokenConstants(**{f.name: getattr(self, f.name)[tokens] for f in fields(self)})


def unwhitened_advantages(answers: Answers, settings: ObjectiveConfig) -> Tensor:
    """The return of each token before whitening and without importance weights, [B, T]; 0 outside."""
    return returns(
        answer_rewards(answers, settings),
        answers.mask,
        gamma=settings.gamma,
        ahead=settings.advantage == "ahead",
        length_norm=settings.length_norm,
    )


def answer_rewards(answers: Answers, settings: ObjectiveConfig) -> Tensor:
    """The scaled, clipped reward of each token, [B, T]; 0 outside the mask."""
    return rewards(
        answers.teacher_logprobs,
        answers.student_logprobs,
        answers.mask,
        scaling=settings.reward_scaling,
        clip=settings.reward_clip,
    )


def advantage_moments(answers: Answers, settings: ObjectiveConfig, max_new_tokens: int) -> Moments:
    """This share's part of the whitening statistics; add the parts of all ranks and micro-batches."""
    return moments(unwhitened_advantages(answers, settings), len(answers.lengths) * max_new_tokens)


def needs_current_logprobs(settings: ObjectiveConfig) -> bool:
    """Whether the constants hold products of current ratios, so that log q is needed before the loss is."""
    per_decision = "per_decision" in (settings.importance_weight, settings.single_step_weight)
    return settings.kind == "minillm" and per_decision


def token_constants(
    answers: Answers,
    settings: ObjectiveConfig,
    statistics: Moments | None = None,
    current_logprobs: Tensor | None = None,
) -> TokenConstants:
    """All of equations 5-6 that q does not move within an optimiser step, [B, T].

    `statistics`: merged `advantage_moments` of the optimiser step, needed with `whiten`. `current_logprobs`
    [B, T]: log q of the weights about to be trained, needed where `needs_current_logprobs`: per-decision
    products run over ratios of other tokens, and those move with every inner epoch. Raises ConfigError for
    settings under which per-decision weights would not be exact.
    """
    _refuse_inexact(settings)
    mask, prefix_weight = answers.mask, torch.ones_like(answers.behaviour_logprobs)
    current = answers.student_logprobs if current_logprobs is None else current_logprobs.detach()
    if needs_current_logprobs(settings) and current_logprobs is None:
        raise ValueError("per-decision weights need current_logprobs")
    if settings.importance_weight == "per_decision":
        advantage = _per_decision_advantage(answers, settings, current)
    else:
        advantage = unwhitened_advantages(answers, settings)
    if settings.whiten:
        if statistics is None:
            raise ValueError("whitening needs the statistics of the whole optimiser step")
        advantage = whitened(advantage, statistics)
    if settings.single_step_weight == "per_decision":
        prefix_weight = per_decision_weights(
            current,
            answers.behaviour_logprobs,
            mask,
            include_current=False,
            cap=settings.importance_cap,
        ).to(prefix_weight.dtype)
    return TokenConstants(
        advantage=advantage.detach(),
        behaviour_logprobs=answers.behaviour_logprobs,
        student_logprobs=answers.student_logprobs,
        prefix_weight=prefix_weight,
    )


def _refuse_inexact(settings: ObjectiveConfig) -> None:
    """Per-decision weights are exact for sums of rewards alone: nothing normalised, whitened or clipped."""
    if faults := settings.faults():
        raise ConfigError(*faults, source="objective")


def _per_decision_advantage(answers: Answers, settings: ObjectiveConfig, current: Tensor) -> Tensor:
    """Sum over later tokens t' of W_t' r_t', W_t' the product of ratios up to t': exact under any mixture."""
    weights = per_decision_weights(
        current,
        answers.behaviour_logprobs,
        answers.mask,
        include_current=True,
        cap=settings.importance_cap,
    )
    total = reward_to_go(weights * answer_rewards(answers, settings), settings.gamma)
    total = ahead_of(total) if settings.advantage == "ahead" else total
    return torch.where(answers.mask, total, 0.0).to(answers.behaviour_logprobs.dtype)


def token_loss(
    kl: Tensor, logprob: Tensor, constants: TokenConstants, settings: ObjectiveConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of each token, differentiable in `kl` and `logprob`; its gradient summed is equation 7's.

    `kl`: exact KL(q || p) at the token's position; `logprob`: log q of the drawn token, both of the weights
    in training. Weights are constants (detached). Also gives, detached: `ratio` = q / p~, `clipped` = 1 where
    the clip took the policy gradient away, and the two terms of the loss.
    """
    ratio, surrogate, clipped = _policy_surrogate(logprob, constants, settings)
    weight = {
        "per_token": _capped(ratio, settings) * ratio,
        "none": torch.ones_like(ratio),
        "per_decision": constants.prefix_weight,
    }[settings.single_step_weight]
    single_step, long_term = weight * kl, surrogate
    loss = single_step if settings.single_step else torch.zeros_like(kl)
    if settings.long_term:
        loss = loss + long_term
    return loss, {
        "ratio": ratio,
        "clipped": clipped.to(ratio.dtype),
        "single_step": single_step.detach(),
        "long_term": long_term.detach(),
    }


def _capped(weight: Tensor, settings: ObjectiveConfig) -> Tensor:
    """What weights are multiplied with so that none exceeds the cap."""
    if settings.importance_cap is None:
        return torch.ones_like(weight)
    return (settings.importance_cap / weight).clamp(max=1.0)


def _policy_surrogate(
    logprob: Tensor, constants: TokenConstants, settings: ObjectiveConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """(q / p~ detached, the long-term loss, where its gradient is clipped away).

    The ratio is split into a fixed part and the part that is clipped, `moving`, which starts from the centre.
    """
    advantage, current = constants.advantage, logprob.detach()
    ratio = (current - constants.behaviour_logprobs).exp()
    if settings.importance_weight == "per_decision":
        score = (logprob - current).exp()  # 1, with the gradient of log q
        return ratio, -advantage * score, torch.zeros_like(ratio, dtype=torch.bool)
    fixed, moving = torch.ones_like(ratio), (logprob - constants.student_logprobs).exp()
    if settings.importance_weight == "per_token":
        if settings.clip_centre == "behaviour":
            moving = (logprob - constants.behaviour_logprobs).exp()
        else:
            fixed = (constants.student_logprobs - constants.behaviour_logprobs).exp()
    fixed = fixed * _capped(fixed * moving.detach(), settings)
    low, high = 1.0 - settings.epsilon, 1.0 + settings.epsilon
    if settings.clip == "ppo":
        loss = torch.maximum(-advantage * moving, -advantage * moving.clamp(low, high))
        clipped = ((advantage > 0) & (moving > high)) | ((advantage < 0) & (moving < low))
    elif settings.clip == "upper":
        loss, clipped = -advantage * moving.clamp(max=high), moving > high
    else:
        loss, clipped = -advantage * moving, torch.zeros_like(moving, dtype=torch.bool)
    return ratio, fixed * loss, clipped


def answer_loss(
    settings: ObjectiveConfig, constants: TokenConstants | None = None, weights: Tensor | None = None
) -> TokenLoss:
    """The token loss of answers under `settings.kind`.

    `constants`, packed to [N], for `minillm` only; `weights` [N] of the divergences, for `kd` by atkd only.
    """
    if settings.kind == "sft":
        return lambda divergence, logprob, tokens: (-logprob, {})
    if settings.kind == "kd":
        fraction = settings.lm_share

        def kd_loss(divergence: Tensor, logprob: Tensor, tokens: slice) -> tuple[Tensor, dict[str, Tensor]]:
            weighted = divergence if weights is None else weights[tokens] * divergence
            return ((1 - fraction) * weighted - fraction * logprob if fraction else weighted), {}

        return kd_loss
    if constants is None:
        raise ValueError("the minillm loss needs token constants")
    return lambda divergence, logprob, tokens: token_loss(divergence, logprob, constants[tokens], settings)


def text_loss(settings: ObjectiveConfig) -> TokenLoss:
    """The language-model term on plain text: (1 - s)(-log q) + s (-sum p log q), s = `text_teacher_share`.

    The paper's L_PT has s = 0, the released code 0.5. Expects `text_divergence(settings)` and temperature 1.
    """
    fraction = settings.text_teacher_share
    return lambda divergence, logprob, tokens: (fraction * divergence - (1 - fraction) * logprob, {})


def answer_divergence(
    settings: ObjectiveConfig, hard: Tensor | None = None, plugins: tuple[str, ...] = ()
) -> Divergence | None:
    """Which full-vocabulary divergence the answers' loss reads; None: it needs no teacher head.

    `hard` bool [N]: which tokens are hard, for `kd` by atkd only. `plugins`: modules that may offer one.
    """
    if settings.kind == "kd":
        return divergence_of(settings, hard, plugins)
    return REVERSE_KL if settings.kind == "minillm" and settings.single_step else None


def text_divergence(settings: ObjectiveConfig) -> Divergence | None:
    """Which full-vocabulary divergence the text's loss reads; None: it needs no teacher head."""
    return CROSS_ENTROPY if settings.text_teacher_share > 0 else None


def loss_count(lengths: Tensor, settings: ObjectiveConfig) -> int:
    """What these answers (or texts) add to the divisor of the optimiser step's sum: tokens, or answers.

    `lengths` [B]: trained tokens of each. Text has a divisor of its own.
    """
    return int(lengths.sum()) if settings.reduction == "tokens" else len(lengths)

"""The loss of one answer token, and the settings in which the MiniLLM paper and its released code differ.

    minillm       equations 3-7: importance-weighted single-step reverse KL + policy gradient on what follows
    lm            -log q of the given answer's tokens
    forward_kl    exact KL(p || q) at each position of the given answers

Two stages. `token_constants` makes what stays fixed while q moves within an optimiser step (returns, log p~);
`minillm_loss` turns these and the exact single-step KL into a loss per token, differentiable in the KL and in
log q alone. The optimiser step's loss is the sum of token losses over all ranks and micro-batches divided by
one `loss_count`, so any split gives the same gradient. Equation numbers are those of arXiv:2306.08543.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from ..common.errors import ConfigError
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

Divergence = Literal["reverse_kl", "forward_kl", "cross_entropy"]
TokenLoss = Callable[[Tensor, Tensor, slice], tuple[Tensor, dict[str, Tensor]]]
"""(divergence [n], log q [n], which tokens) to (loss [n], detached figures [n] by name)."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """What is minimised. The defaults are the paper's equations; REFERENCE is the authors' released code.

    Raises ConfigError, with all faults at once, where settings contradict one another.
    """

    kind: Literal["minillm", "lm", "forward_kl"] = "minillm"
    """Which loss the answers get; the fields below concern `minillm`, apart from temperature."""
    gamma: float = 1.0
    """Discount of later rewards. Paper 1 (none); reference 0.95, by an argument's default."""
    reward_scaling: float = 1.0
    """Divides the rewards. Paper 1; reference 0.5, which its whitening undoes but for the clip."""
    reward_clip: float | None = None
    """Bound on the scaled reward's absolute value. Paper none; reference 100."""
    reward_temperature: Literal["sampling", "one"] = "sampling"
    """At which temperature (and with or without top-p and top-k) the teacher's log p enters the reward.
    sampling: the warped distribution that sampling and the single-step term use. one: as the teacher gives
    it (reference). Equal at temperature 1 with nothing cut."""
    advantage: Literal["ahead", "from_current"] = "ahead"
    """ahead: R_{t+1} (equation 3). from_current: R_t (reference), which counts the token's own reward a
    second time beside the single-step term."""
    length_norm: bool = True
    """Divide the return by its number of terms (equation 6); the reference always does."""
    whiten: bool = False
    """Whiten the returns over the whole optimiser step, padding slots included. Reference True."""
    long_term: bool = True
    """Keep the policy-gradient term of equation 3."""
    single_step: bool = True
    """Keep the exact single-step term of equation 3."""
    single_step_weight: Literal["per_token", "none", "per_decision"] = "per_token"
    """Weight of the single-step term. per_token: w_t = q / p~ (equation 5). none: 1 (reference; the same
    expected gradient). per_decision: the product over earlier tokens (exact)."""
    importance_weight: Literal["per_token", "none", "per_decision"] = "per_token"
    """Weight of the long-term term. per_token: q / p~ (paper and reference). none: the answers count as the
    student's own, q / q_old, which is 1 on fresh answers. per_decision: the product up to each reward's token
    (exact)."""
    importance_cap: float | None = None
    """Upper bound on every importance weight, or none. Bounds the variance for some bias."""
    clip: Literal["upper", "ppo", "none"] = "upper"
    """upper: min[rho, clip(rho)] outside the return, whatever its sign (Algorithm 1). ppo: PPO's pessimistic
    maximum of the two losses (reference)."""
    clip_range: float = 0.2
    """The epsilon of clip: the ratio may move within 1 +- this."""
    clip_centre: Literal["behaviour", "student_at_sampling"] = "behaviour"
    """What the clipped ratio is taken to. behaviour: q / p~ (paper and reference), which at a teacher mix of
    0.2 is already clipped on some fresh tokens. student_at_sampling: q / q_old, always 1 on fresh tokens."""
    reduction: Literal["tokens", "sequences"] = "tokens"
    """sequences: the sum over an answer's tokens, averaged over answers, as the paper writes it. tokens: the
    mean over all tokens of the optimiser step (reference): the same divided by the mean answer length."""
    temperature: float = 1.0
    """Divides both networks' logits in the loss; the temperature that answers are sampled at."""
    text_teacher_share: float = 0.0
    """Share of the teacher's soft cross-entropy in the language-model term. Paper 0; reference 0.5."""

    def __post_init__(self) -> None:
        faults = list(_faults(self))
        if faults:
            raise ConfigError(*faults, source="objective")


def _faults(s: ObjectiveSettings) -> Iterable[str]:
    for name, annotation in get_type_hints(ObjectiveSettings).items():
        words = get_args(annotation) if get_origin(annotation) is Literal else ()
        if words and getattr(s, name) not in words:
            yield f"objective.{name} = {getattr(s, name)!r} is not one of {', '.join(words)}"
    for name, holds, wanted in (
        ("gamma", 0 <= s.gamma <= 1, "from 0 to 1"),
        ("reward_scaling", s.reward_scaling > 0, "above 0"),
        ("reward_clip", s.reward_clip is None or s.reward_clip > 0, "above 0, or left out"),
        ("importance_cap", s.importance_cap is None or s.importance_cap > 0, "above 0, or left out"),
        ("clip_range", s.clip_range > 0, "above 0"),
        ("temperature", s.temperature > 0, "above 0"),
        ("text_teacher_share", 0 <= s.text_teacher_share <= 1, "from 0 to 1"),
    ):
        if not holds:
            yield f"objective.{name} = {getattr(s, name)!r} must be {wanted}"
    if not (s.single_step or s.long_term):
        yield "objective.single_step and objective.long_term are both false: nothing is left; keep one"
    rows = {"length_norm": False, "clip": "none", "whiten": False}
    for name in ("importance_weight", "single_step_weight"):
        for other, exact in rows.items() if getattr(s, name) == "per_decision" else ():
            if getattr(s, other) != exact:
                yield (
                    f"objective.{name} = per_decision is exact only with {other} = {str(exact).lower()}; "
                    f"set that, or {name} = per_token"
                )


PAPER = ObjectiveSettings()
"""Equations 3-7 and Algorithm 1, as a mean over tokens."""

REFERENCE = ObjectiveSettings(
    gamma=0.95,
    reward_scaling=0.5,
    reward_clip=100.0,
    reward_temperature="one",
    advantage="from_current",
    whiten=True,
    single_step_weight="none",
    clip="ppo",
    text_teacher_share=0.5,
)
"""The released code as its scripts run it; reproduces its numbers (tests/learner/test_golden.py)."""


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


def unwhitened_advantages(answers: Answers, settings: ObjectiveSettings) -> Tensor:
    """The return of each token before whitening and without importance weights, [B, T]; 0 outside."""
    return returns(
        answer_rewards(answers, settings),
        answers.mask,
        gamma=settings.gamma,
        ahead=settings.advantage == "ahead",
        length_norm=settings.length_norm,
    )


def answer_rewards(answers: Answers, settings: ObjectiveSettings) -> Tensor:
    """The scaled, clipped reward of each token, [B, T]; 0 outside the mask."""
    return rewards(
        answers.teacher_logprobs,
        answers.student_logprobs,
        answers.mask,
        scaling=settings.reward_scaling,
        clip=settings.reward_clip,
    )


def advantage_moments(answers: Answers, settings: ObjectiveSettings, max_new_tokens: int) -> Moments:
    """This share's part of the whitening statistics; add the parts of all ranks and micro-batches."""
    return moments(unwhitened_advantages(answers, settings), len(answers.lengths) * max_new_tokens)


def needs_current_logprobs(settings: ObjectiveSettings) -> bool:
    """Whether the constants hold products of current ratios, so that log q is needed before the loss is."""
    per_decision = "per_decision" in (settings.importance_weight, settings.single_step_weight)
    return settings.kind == "minillm" and per_decision


def token_constants(
    answers: Answers,
    settings: ObjectiveSettings,
    statistics: Moments | None = None,
    current_logprobs: Tensor | None = None,
) -> TokenConstants:
    """All of equations 5-6 that q does not move within an optimiser step, [B, T].

    `statistics`: merged `advantage_moments` of the optimiser step, needed with `whiten`. `current_logprobs`
    [B, T]: log q of the weights about to be trained, needed where `needs_current_logprobs`: per-decision
    products run over ratios of other tokens, and those move with every inner epoch.
    """
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


def _per_decision_advantage(answers: Answers, settings: ObjectiveSettings, current: Tensor) -> Tensor:
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
    kl: Tensor, logprob: Tensor, constants: TokenConstants, settings: ObjectiveSettings
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


def _capped(weight: Tensor, settings: ObjectiveSettings) -> Tensor:
    """What weights are multiplied with so that none exceeds the cap."""
    if settings.importance_cap is None:
        return torch.ones_like(weight)
    return (settings.importance_cap / weight).clamp(max=1.0)


def _policy_surrogate(
    logprob: Tensor, constants: TokenConstants, settings: ObjectiveSettings
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
    low, high = 1.0 - settings.clip_range, 1.0 + settings.clip_range
    if settings.clip == "ppo":
        loss = torch.maximum(-advantage * moving, -advantage * moving.clamp(low, high))
        clipped = ((advantage > 0) & (moving > high)) | ((advantage < 0) & (moving < low))
    elif settings.clip == "upper":
        loss, clipped = -advantage * moving.clamp(max=high), moving > high
    else:
        loss, clipped = -advantage * moving, torch.zeros_like(moving, dtype=torch.bool)
    return ratio, fixed * loss, clipped


def answer_loss(settings: ObjectiveSettings, constants: TokenConstants | None = None) -> TokenLoss:
    """The token loss of answers under `settings.kind`; `constants`, packed to [N], for `minillm` only."""
    if settings.kind == "lm":
        return lambda divergence, logprob, tokens: (-logprob, {})
    if settings.kind == "forward_kl":
        return lambda divergence, logprob, tokens: (divergence, {})
    if constants is None:
        raise ValueError("the minillm loss needs token constants")
    return lambda divergence, logprob, tokens: token_loss(divergence, logprob, constants[tokens], settings)


def text_loss(settings: ObjectiveSettings) -> TokenLoss:
    """The language-model term on plain text: (1 - s)(-log q) + s (-sum p log q), s = `text_teacher_share`.

    The paper's L_PT has s = 0, the released code 0.5. Expects `text_divergence(settings)` and temperature 1.
    """
    share = settings.text_teacher_share
    return lambda divergence, logprob, tokens: (share * divergence - (1 - share) * logprob, {})


def answer_divergence(settings: ObjectiveSettings) -> Divergence | None:
    """Which full-vocabulary divergence the answers' loss reads; None: it needs no teacher head."""
    if settings.kind == "minillm":
        return "reverse_kl" if settings.single_step else None
    return "forward_kl" if settings.kind == "forward_kl" else None


def text_divergence(settings: ObjectiveSettings) -> Divergence | None:
    """Which full-vocabulary divergence the text's loss reads; None: it needs no teacher head."""
    return "cross_entropy" if settings.text_teacher_share > 0 else None


def loss_count(lengths: Tensor, settings: ObjectiveSettings) -> int:
    """What these answers (or texts) add to the divisor of the optimiser step's sum: tokens, or answers.

    `lengths` [B]: trained tokens of each. Text has a divisor of its own.
    """
    return int(lengths.sum()) if settings.reduction == "tokens" else len(lengths)

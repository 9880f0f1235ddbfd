"""The token loss and its settings: what contradicts, what clips, and what a split must not change."""

from itertools import product

import pytest
import torch
from minillm_ray.common.config.objective import ObjectiveConfig
from minillm_ray.common.errors import ConfigError
from minillm_ray.common.heads import Head
from minillm_ray.learner.divergences import CROSS_ENTROPY, REVERSE_KL
from minillm_ray.learner.fused_loss import fused_loss
from minillm_ray.learner.objective import (
    Answers,
    TokenConstants,
    advantage_moments,
    answer_divergence,
    answer_loss,
    loss_count,
    needs_current_logprobs,
    text_divergence,
    text_loss,
    token_constants,
    token_loss,
)
from minillm_ray.learner.returns import Moments
from minillm_ray.tests.learner.problems import PAPER, REFERENCE, Batch, batch_loss, changed, random_batch
from torch import Tensor

PER_DECISION = ObjectiveConfig(
    importance_weight="per_decision", single_step_weight="per_decision", length_norm=False, clip="none"
)
KINDS = {
    "paper": PAPER,
    "reference": REFERENCE,
    "per_decision": PER_DECISION,
    "capped": changed(PAPER, clip_centre="student_at_sampling", importance_cap=1.1),
    "no_weights": changed(PAPER, importance_weight="none", single_step_weight="none"),
    "sft": ObjectiveConfig(kind="sft"),
    "forward_kl": ObjectiveConfig(kind="kd"),
}


def gradients(batch: Batch, settings: ObjectiveConfig, **how) -> tuple[float, Tensor, Tensor]:
    loss, _ = batch_loss(batch, settings, **how)
    hidden, weight = torch.autograd.grad(loss, [batch.hidden, batch.student.weight])
    return loss.item(), hidden, weight


# Settings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"importance_weight": "per_decision"}, ["length_norm=false", "clip=none"]),
        ({"single_step_weight": "per_decision"}, ["length_norm=false", "clip=none"]),
        (
            {"importance_weight": "per_decision", "length_norm": False, "clip": "none", "whiten": True},
            ["whiten=false"],
        ),
        ({"single_step": False, "long_term": False}, ["single_step", "long_term"]),
    ],
)
def test_settings_that_contradict_are_refused_with_a_way_out(changes: dict, words: list[str]):
    answers = random_batch().answers
    with pytest.raises(ConfigError) as caught:
        token_constants(answers, changed(PAPER, **changes), Moments(), answers.student_logprobs)
    assert all(word in str(caught.value) for word in words)


def test_only_losses_that_read_a_divergence_ask_for_one():
    assert answer_divergence(PAPER) is REVERSE_KL
    assert answer_divergence(changed(PAPER, single_step=False)) is None
    assert answer_divergence(KINDS["sft"]) is None
    kd = answer_divergence(KINDS["forward_kl"])
    assert kd is not None
    assert kd.name == "forward_kl"
    assert text_divergence(PAPER) is None
    assert text_divergence(REFERENCE) is CROSS_ENTROPY


def test_only_per_decision_weights_need_the_current_logprobs():
    assert [name for name, s in KINDS.items() if needs_current_logprobs(s)] == ["per_decision"]


def test_constants_refuse_to_be_made_of_too_little():
    answers = random_batch().answers
    with pytest.raises(ValueError, match="statistics"):
        token_constants(answers, REFERENCE)
    with pytest.raises(ValueError, match="current_logprobs"):
        token_constants(answers, PER_DECISION)
    with pytest.raises(ValueError, match="constants"):
        answer_loss(PAPER)


# One optimiser step is one, however it is split

SPLITS = [[[0, 1, 2, 3], [4, 5, 6]], [[6], [3, 0], [5, 1, 2, 4]], [[i] for i in range(7)], [[], [*range(7)]]]


@pytest.mark.parametrize("reduction", ["tokens", "sequences"])
@pytest.mark.parametrize("name", KINDS)
def test_any_split_gives_the_same_gradient(name: str, reduction):
    batch, settings = random_batch(answers=7), changed(KINDS[name], reduction=reduction)
    loss, hidden, weight = gradients(batch, settings, temperature=1.3)
    assert hidden.abs().max() > 0
    for split in SPLITS:
        rows = [torch.tensor(part, dtype=torch.int64) for part in split]
        other = gradients(batch, settings, temperature=1.3, splits=rows, chunk_tokens=3)
        assert other[0] == pytest.approx(loss, rel=1e-12)
        assert torch.allclose(other[1], hidden, rtol=0, atol=1e-13 * hidden.abs().max().item())
        assert torch.allclose(other[2], weight, rtol=0, atol=1e-13 * weight.abs().max().item())


@pytest.mark.parametrize("name", KINDS)
def test_padding_changes_nothing(name: str):
    batch, settings = random_batch(), KINDS[name]
    loss, hidden, weight = gradients(batch, settings, slots=12)
    longer = batch.padded(5)
    longer.hidden = longer.hidden.detach().requires_grad_()
    other = gradients(longer, settings, slots=12)
    assert other[0] == pytest.approx(loss, rel=1e-13)
    assert torch.allclose(other[1][:, :7], hidden, rtol=0, atol=1e-13)
    assert not other[1][:, 7:].any()
    assert torch.allclose(other[2], weight, rtol=0, atol=1e-13)


def test_reductions_differ_by_the_mean_answer_length():
    batch = random_batch()
    by_tokens, by_answers = (
        gradients(batch, changed(PAPER, reduction=r))[1] for r in ("tokens", "sequences")
    )
    mean_length = batch.answers.lengths.double().mean()
    assert torch.allclose(by_tokens * mean_length, by_answers)
    lengths = torch.tensor([3, 1])
    assert loss_count(lengths, PAPER) == 4
    assert loss_count(lengths, changed(PAPER, reduction="sequences")) == 2


def test_an_answer_of_end_of_sequence_alone_is_trained_on():
    batch = random_batch(answers=1, slots=1)
    assert gradients(batch, PAPER)[1].abs().max() > 0


def test_a_perfect_student_has_no_gradient():
    batch = random_batch()
    batch.teacher, batch.teacher_hidden = batch.student, batch.hidden.detach()
    log_q = (
        batch.student.logits(batch.hidden).log_softmax(-1).gather(-1, batch.ids[..., None])[..., 0].detach()
    )
    batch.answers = Answers(
        lengths=batch.answers.lengths,
        behaviour_logprobs=log_q,
        student_logprobs=log_q,
        teacher_logprobs=log_q,
    )
    for settings in (PAPER, PER_DECISION, changed(REFERENCE, whiten=False)):
        loss, hidden, _ = gradients(batch, settings)
        assert abs(loss) < 1e-14
        assert hidden.abs().max() < 1e-14


# What one token's loss is


def one_token(
    log_ratio: float, advantage: float, *, since_sampling: float = 0.0, prefix_weight: float = 1.0, **changes
) -> tuple[float, float, float, dict[str, Tensor]]:
    """(loss, d/d kl, d/d log q, figures) of a token with this log q / p~ and log q / q_old, at KL = 3."""
    kl, logprob = (torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (3.0, -2.0))
    constants = TokenConstants(
        advantage=torch.tensor([advantage], dtype=torch.float64),
        behaviour_logprobs=logprob.detach() - log_ratio,
        student_logprobs=logprob.detach() - since_sampling,
        prefix_weight=torch.tensor([prefix_weight], dtype=torch.float64),
    )
    loss, figures = token_loss(kl, logprob, constants, ObjectiveConfig.model_validate(changes))
    by_kl, by_logprob = torch.autograd.grad(loss.sum(), [kl, logprob], materialize_grads=True)
    return loss.item(), by_kl.item(), by_logprob.item(), figures


UP, DOWN = torch.tensor(1.5).log().item(), torch.tensor(0.5).log().item()


def test_the_papers_token_loss_by_hand():
    loss, by_kl, by_logprob, figures = one_token(DOWN, 2.0)
    assert loss == pytest.approx(0.5 * 3 - 0.5 * 2)
    assert by_kl == pytest.approx(0.5)
    assert by_logprob == pytest.approx(-0.5 * 2)
    assert {k: v.item() for k, v in figures.items()} == pytest.approx(
        {"ratio": 0.5, "clipped": 0.0, "single_step": 1.5, "long_term": -1.0}
    )


@pytest.mark.parametrize(
    ("clip", "log_ratio", "advantage", "clipped"),
    [
        ("upper", UP, 2.0, True),
        ("upper", UP, -2.0, True),
        ("upper", DOWN, 2.0, False),
        ("upper", DOWN, -2.0, False),
        ("ppo", UP, 2.0, True),
        ("ppo", UP, -2.0, False),
        ("ppo", DOWN, 2.0, False),
        ("ppo", DOWN, -2.0, True),
        ("none", UP, 2.0, False),
        ("none", DOWN, -2.0, False),
    ],
)
def test_what_each_clip_takes_away(clip: str, log_ratio: float, advantage: float, clipped: bool):
    ratio = torch.tensor(log_ratio).exp().item()
    loss, _, by_logprob, figures = one_token(log_ratio, advantage, clip=clip, single_step=False)
    assert bool(figures["clipped"].item()) == clipped
    assert loss == pytest.approx(-advantage * (min(max(ratio, 0.8), 1.2) if clipped else ratio), rel=1e-6)
    assert by_logprob == pytest.approx(0.0 if clipped else -advantage * ratio, rel=1e-6)


def test_a_clip_around_the_sampling_student_spares_fresh_answers():
    *_, about_mixture = one_token(UP, 2.0)
    loss, _, by_logprob, about_student = one_token(
        UP, 2.0, clip_centre="student_at_sampling", single_step=False
    )
    assert (about_mixture["clipped"].item(), about_student["clipped"].item()) == (1, 0)
    assert loss == pytest.approx(by_logprob) == pytest.approx(-2 * 1.5, rel=1e-6)
    moved = one_token(UP, 2.0, clip_centre="student_at_sampling", since_sampling=UP, single_step=False)
    assert moved[0] == pytest.approx(-2 * 1.2, rel=1e-6)
    assert moved[2] == 0


def test_without_importance_weights_answers_count_as_the_students_own():
    loss, by_kl, by_logprob, figures = one_token(
        DOWN, 2.0, importance_weight="none", single_step_weight="none"
    )
    assert (loss, by_kl, by_logprob) == pytest.approx((3.0 - 2.0, 1.0, -2.0))
    assert figures["ratio"].item() == pytest.approx(0.5)


def test_a_cap_bounds_weights_and_keeps_the_gradient():
    loss, by_kl, by_logprob, _ = one_token(UP, 2.0, importance_cap=1.1, clip="none")
    assert (loss, by_kl, by_logprob) == pytest.approx((1.1 * 3 - 1.1 * 2, 1.1, -1.1 * 2), rel=1e-6)


def test_per_decision_weights_stand_in_the_constants():
    found = one_token(
        UP,
        2.0,
        prefix_weight=0.3,
        importance_weight="per_decision",
        single_step_weight="per_decision",
        length_norm=False,
        clip="none",
    )
    assert found[:3] == pytest.approx((0.3 * 3 - 2, 0.3, -2.0))


def test_at_a_mix_of_a_fifth_some_fresh_tokens_are_clipped_already():
    p, q = torch.tensor(1e-6).log(), torch.tensor(0.9).log()
    behaviour = (0.2 * p.exp() + 0.8 * q.exp()).log()
    assert one_token((q - behaviour).item(), 1.0)[3]["clipped"].item() == 1


def test_temperature_reaches_both_networks():
    batch = random_batch()
    _, (result,) = batch_loss(batch, changed(PAPER, clip="none"), temperature=1.7)
    mask = batch.answers.mask
    log_q = (batch.student.logits(batch.hidden[mask]) / 1.7).log_softmax(-1)
    log_p = (batch.teacher.logits(batch.teacher_hidden[mask]) / 1.7).log_softmax(-1)
    assert torch.allclose(result.divergence, (log_q.exp() * (log_q - log_p)).sum(-1))
    assert torch.allclose(result.logprobs, log_q.gather(1, batch.ids[mask][:, None])[:, 0])


def test_whitening_statistics_span_the_whole_step():
    batch = random_batch()
    statistics = advantage_moments(batch.answers, REFERENCE, 40)
    assert statistics.slots == 6 * 40
    advantage = token_constants(batch.answers, REFERENCE, statistics).advantage
    own = advantage[batch.answers.mask]
    padding = own.new_full((6 * 40 - len(own),), -statistics.mean / statistics.variance**0.5)
    everywhere = torch.cat([own, padding])
    assert everywhere.mean().item() == pytest.approx(0, abs=1e-6)
    assert everywhere.var().item() == pytest.approx(1, rel=1e-6)


# Plain text


def test_the_text_loss_is_half_next_token_half_teacher_by_hand():
    """Two words; q = (3/4, 1/4), p = (1/2, 1/2), the second word follows."""
    q, p = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    head = Head(weight=torch.eye(2), vocabulary=2)
    next_token = -torch.tensor(0.25).log().item()
    soft = -(0.5 * torch.tensor(0.75).log() + 0.5 * torch.tensor(0.25).log()).item()
    for fraction in (0.0, 0.5, 1.0):
        settings = changed(REFERENCE, text_teacher_share=fraction)
        hidden = q.clone().requires_grad_()
        result = fused_loss(
            hidden,
            head,
            torch.tensor([1]),
            text_loss(settings),
            divisor=1,
            teacher_hidden=p,
            teacher=head,
            divergence=text_divergence(settings),
        )
        result.loss.backward()
        assert result.loss.item() == pytest.approx((1 - fraction) * next_token + fraction * soft)
        target = torch.tensor([[fraction * 0.5, (1 - fraction) + fraction * 0.5]])
        assert hidden.grad is not None
        assert torch.allclose(hidden.grad, torch.tensor([[0.75, 0.25]]) - target)


@pytest.mark.parametrize(("fraction", "reduction"), [*product([0.0, 0.5], ["tokens", "sequences"])])
def test_text_in_parts_adds_up(fraction: float, reduction):
    batch = random_batch()
    settings = changed(PAPER, text_teacher_share=fraction, reduction=reduction)
    divisor = loss_count(batch.answers.lengths, settings)

    def loss(rows: list[int]) -> float:
        part = batch.take(torch.tensor(rows))
        mask = part.answers.mask
        return fused_loss(
            part.hidden[mask],
            part.student,
            part.ids[mask],
            text_loss(settings),
            divisor=divisor,
            teacher_hidden=part.teacher_hidden[mask],
            teacher=part.teacher,
            divergence=text_divergence(settings),
        ).loss.item()

    assert loss([0, 1, 2, 3, 4, 5]) == pytest.approx(loss([0, 4]) + loss([1, 2, 3, 5]), rel=1e-12)

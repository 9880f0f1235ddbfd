"""The family of divergences: values worked by hand, limits, and what must not divide by zero.

That values and slopes equal the plain way is in test_fused_head.py.
"""

from __future__ import annotations

import math

import pytest
import torch
from minillm_ray.common.config.objective import DIVERGENCES, ObjectiveConfig
from minillm_ray.common.errors import ConfigError
from minillm_ray.learner.divergences import DoubtSplit, by_autograd, divergence_of
from minillm_ray.learner.objective import Answers, answer_divergence, token_constants, token_loss
from torch import Tensor

P = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64)
Q = torch.tensor([[0.2, 0.2, 0.5, 0.1]], dtype=torch.float64)
NAMES = DIVERGENCES


def settings(name: str, **more: object) -> ObjectiveConfig:
    return ObjectiveConfig.model_validate({"kind": "kd", "divergence": name, **more})


def value(name: str, p: Tensor = P, q: Tensor = Q, gold: int = 0, hard: bool = True, **more: object) -> float:
    found = divergence_of(settings(name, **more), torch.full((len(p),), hard))
    ids = torch.full((len(p), 1), gold)
    return found.walk(q.log(), p.log(), ids, slice(0, len(p)))[0].item()


def slope(name: str, p: Tensor, q: Tensor, **more: object) -> Tensor:
    found = divergence_of(settings(name, **more), torch.ones(len(p), dtype=torch.bool))
    _, slope_of = found.walk(q.log(), p.log(), torch.zeros(len(p), 1, dtype=torch.int64), slice(0, len(p)))
    one = torch.ones(len(p), 1, dtype=p.dtype)
    return slope_of(one, torch.zeros_like(one))


def kl(a: list[float], b: list[float]) -> float:
    return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))


BY_HAND = {
    "forward_kl": 0.5 * math.log(2.5) + 0.3 * math.log(1.5) + 0.15 * math.log(0.3) + 0.05 * math.log(0.5),
    "reverse_kl": 0.2 * math.log(0.4) + 0.2 * math.log(2 / 3) + 0.5 * math.log(10 / 3) + 0.1 * math.log(2),
    "total_variation": 0.4,
    "jsd": 0.5 * kl([0.5, 0.3, 0.15, 0.05], [0.35, 0.25, 0.325, 0.075])
    + 0.5 * kl([0.2, 0.2, 0.5, 0.1], [0.35, 0.25, 0.325, 0.075]),
    "skew_kl": kl([0.5, 0.3, 0.15, 0.05], [0.23, 0.21, 0.465, 0.095]),
    "skew_reverse_kl": kl([0.2, 0.2, 0.5, 0.1], [0.47, 0.29, 0.185, 0.055]),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_case_worked_by_hand(name):
    assert value(name) == pytest.approx(BY_HAND[name], rel=1e-12)


def test_akl_weighs_the_two_kls_by_where_the_gap_is():
    # Head: the likeliest word alone (0.5 <= 0.5; 0.8 > 0.5): gaps 0.3 | 0.1 + 0.35 + 0.05.
    fraction = 0.3 / 0.8
    assert value("akl") == pytest.approx(
        fraction * BY_HAND["forward_kl"] + (1 - fraction) * BY_HAND["reverse_kl"], rel=1e-12
    )


def test_akl_keeps_the_likeliest_word_in_the_head_even_if_it_alone_exceeds_the_mass():
    assert value("akl", akl_mass=0.2) == pytest.approx(value("akl"), rel=1e-12)


def test_akl_does_not_depend_on_the_order_of_the_words():
    order = torch.tensor([2, 0, 3, 1])
    assert value("akl", P[:, order], Q[:, order]) == pytest.approx(value("akl"), rel=1e-12)


def test_atkd_takes_the_token_apart_and_easy_tokens_by_the_other_words_alone():
    among = kl([0.6, 0.3, 0.1], [0.25, 0.625, 0.125])
    of_token = kl([0.5, 0.5], [0.2, 0.8])
    assert value("atkd", hard=False) == pytest.approx(among, rel=1e-12)
    assert value("atkd", hard=True) == pytest.approx(among + of_token, rel=1e-12)
    # With the doubt factor that atkd drops, the two parts are the forward KL.
    assert of_token + 0.5 * among == pytest.approx(BY_HAND["forward_kl"], rel=1e-12)


@pytest.mark.parametrize(("beta", "limit"), [(1e-6, "forward_kl"), (1 - 1e-6, "reverse_kl")])
def test_jsd_over_its_weight_tends_to_a_kl(beta, limit):
    weight = min(beta, 1 - beta)
    assert value("jsd", jsd_beta=beta) / weight == pytest.approx(BY_HAND[limit], rel=1e-4)
    found, expected = slope("jsd", P, Q, jsd_beta=beta) / weight, slope(limit, P, Q)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("beta", "limit"), [(0, "forward_kl"), (1, "reverse_kl")])
def test_jsd_at_its_ends_is_refused_with_what_it_tends_to(beta, limit):
    (fault,) = settings("jsd", jsd_beta=beta).faults()
    assert f"objective.jsd_beta = {beta}" in str(fault)
    assert f"objective.divergence={limit}" in str(fault)


@pytest.mark.parametrize(("name", "plain"), [("skew_kl", "forward_kl"), ("skew_reverse_kl", "reverse_kl")])
def test_without_skew_a_skewed_kl_is_the_plain_one(name, plain):
    assert value(name, skew=0) == pytest.approx(BY_HAND[plain], rel=1e-12)
    assert value(name, skew=1e-9) == pytest.approx(BY_HAND[plain], rel=1e-6)
    torch.testing.assert_close(slope(name, P, Q, skew=1e-9), slope(plain, P, Q), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_equal_distributions_have_no_divergence_and_no_slope(name):
    assert value(name, P, P) == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(slope(name, P, P), torch.zeros_like(P), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_slope_moves_no_mass_out_of_the_vocabulary(name):
    assert slope(name, P, Q).sum().item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("turned", [False, True])
def test_two_distributions_that_share_nothing_give_finite_values_and_slopes(name, turned):
    sure, other = torch.tensor([[300.0, 0.0, -300.0]]), torch.tensor([[-300.0, 0.0, 300.0]])
    log_p, log_q = (x.log_softmax(-1) for x in ((other, sure) if turned else (sure, other)))
    found = divergence_of(settings(name), torch.tensor([True]))
    values, slope_of = found.walk(log_q, log_p, torch.tensor([[0]]), slice(0, 1))
    assert values.isfinite().all()
    assert slope_of(torch.ones(1, 1), torch.ones(1, 1)).isfinite().all()


def test_half_of_the_tokens_are_hard_wherever_they_stand():
    doubts = torch.tensor([0.1, 0.9, 0.4, 0.6])
    split = DoubtSplit.of(doubts)
    assert (split.num_easy, split.num_hard) == (2, 2)
    assert split.hard(doubts).tolist() == [False, True, False, True]
    weights = split.weights(split.hard(doubts), easy_weight=0.2)
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert (weights * losses).mean().item() == pytest.approx(0.2 * (1 + 3) / 2 + 0.8 * (2 + 4) / 2)


def test_a_single_token_is_hard_and_no_token_is_nothing():
    one = DoubtSplit.of(torch.tensor([0.3]))
    hard = one.hard(torch.tensor([0.3]))
    assert hard.tolist() == [True]
    assert one.weights(hard, easy_weight=0.2).item() == pytest.approx(0.8)
    assert DoubtSplit.of(torch.zeros(0)).weights(torch.zeros(0, dtype=torch.bool), 0.2).shape == (0,)


def test_atkd_without_its_split_and_with_means_over_answers_is_refused():
    with pytest.raises(ValueError, match="hard"):
        answer_divergence(settings("atkd"))
    (fault,) = settings("atkd", reduction="sequences").faults()
    assert "objective.reduction=tokens" in str(fault)


def test_on_policy_distillation_weighs_each_token_with_its_own_reward_and_nothing_else():
    opd = ObjectiveConfig(kind="minillm", preset="opd")
    log_q = torch.log(torch.tensor([[0.5, 0.25, 0.1]]))
    log_p = torch.log(torch.tensor([[0.25, 0.5, 0.2]]))
    answers = Answers(
        lengths=torch.tensor([3]), behaviour_logprobs=log_q, student_logprobs=log_q, teacher_logprobs=log_p
    )
    constants = token_constants(answers, opd)
    torch.testing.assert_close(constants.advantage, log_p - log_q)
    moved = (log_q + 0.1)[0].requires_grad_()
    loss, _ = token_loss(torch.ones(3), moved, constants[answers.mask], opd)
    torch.testing.assert_close(loss, -(log_p - log_q)[0] * math.exp(0.1))
    assert answer_divergence(opd) is None
    assert not opd.needs_teacher_hidden


def test_sampled_answers_are_for_objectives_that_can_have_them():
    assert ObjectiveConfig().share_sampled == 1
    assert settings("jsd").share_sampled == 0
    assert settings("jsd", sampled_share=0.5).share_sampled == 0.5
    for kind, fraction in (("sft", 0.5), ("minillm", 0.5)):
        (fault,) = ObjectiveConfig.model_validate({"kind": kind, "sampled_share": fraction}).faults()
        assert "objective.sampled_share" in str(fault)
    with pytest.raises(ConfigError):
        raise ConfigError(*settings("jsd", jsd_beta=0).faults())


def test_a_divergence_by_autograd_has_the_value_and_slope_of_the_closed_form():
    torch.manual_seed(0)
    log_q, log_p = (torch.randn(4, 9, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    ids, by_value, by_logprob = torch.zeros(4, 1, dtype=torch.int64), torch.rand(4, 1), torch.rand(4, 1)
    plain = by_autograd(lambda q, p: ((q.exp() - p.exp()) * (q - p)).sum(-1))
    found = []
    for fn in (plain, divergence_of(settings("jeffreys")).walk):
        value, grad = fn(log_q.clone(), log_p.clone(), ids, slice(0, 4))
        found.append((value, grad(by_value.double(), by_logprob.double())))
    (one, slope), (other, expected) = found
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(slope, expected)


def test_a_divergence_of_a_plugin_is_the_one_that_kd_minimises(tmp_path, monkeypatch):
    (tmp_path / "losses_of_this_test.py").write_text(
        "from minillm_ray.learner.divergences import by_autograd\n"
        "divergences = {'hellinger': by_autograd("
        "lambda q, p: 1 - ((q + p) / 2).exp().sum(-1))}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = answer_divergence(
        ObjectiveConfig(kind="kd", divergence="hellinger"), plugins=("losses_of_this_test",)
    )
    assert found is not None
    log_q = torch.log_softmax(torch.randn(2, 5), -1)
    value, _ = found.walk(log_q.clone(), log_q.clone(), torch.zeros(2, 1, dtype=torch.int64), slice(0, 2))
    torch.testing.assert_close(value, torch.zeros(2), atol=1e-6, rtol=0)

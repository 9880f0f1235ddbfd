import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from minillm_ray.actors.mixing import Mixture, draw, mix, temper, truncate, warp
from scipy import stats


def rows(seed: int, count: int = 3, words: int = 40, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(count, words, generator=torch.Generator().manual_seed(seed))


@given(st.floats(0, 1), st.integers(0, 1000))
def test_the_mixture_is_the_weighted_sum_of_both_networks(alpha, seed):
    log_q, log_p = temper(rows(seed), 1.0), temper(rows(seed + 1), 1.0)
    want = (alpha * log_p.double().exp() + (1 - alpha) * log_q.double().exp()).log()
    torch.testing.assert_close(mix(log_q, log_p, alpha).double(), want, atol=2e-5, rtol=1e-5)


def test_at_alpha_0_and_1_the_mixture_is_one_network_bit_for_bit():
    log_q, log_p = temper(rows(1), 1.0), temper(rows(2), 1.0)
    assert torch.equal(mix(log_q, log_p, 0.0), log_q)
    assert torch.equal(mix(log_q, log_p, 1.0), log_p)


def test_mixing_keeps_tokens_that_one_network_all_but_excludes():
    log_q = torch.tensor([[-300.0, 0.0, -torch.inf, -torch.inf]])
    log_p = torch.tensor([[0.0, -300.0, -250.0, -torch.inf]])
    want = [[math.log(0.2), math.log(0.8), math.log(0.2) - 250, -math.inf]]
    torch.testing.assert_close(mix(log_q, log_p, 0.2), torch.tensor(want))


@pytest.mark.parametrize("words", [40, 5000])
@pytest.mark.parametrize("scale", [3.0, 0.1])  # a peaked vocabulary, and one of which most is needed
@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, 5), (0.6, 0), (0.9, 7), (1e-9, 0), (0.5, 10_000)])
def test_truncation_keeps_the_best_tokens_and_renormalises(top_p, top_k, scale, words):
    log_probs = temper(rows(3, 3, words, scale), 1.0)
    for whole, cut in zip(log_probs, truncate(log_probs, top_p, top_k), strict=True):
        order = whole.argsort(descending=True)[: top_k or None]
        mass = whole[order].exp() / whole[order].exp().sum()
        num_kept = int((mass.cumsum(0) - mass < top_p).sum())
        want = torch.full_like(whole, -torch.inf)
        want[order[:num_kept]] = (mass[:num_kept] / mass[:num_kept].sum()).log()
        torch.testing.assert_close(cut, want, atol=1e-5, rtol=1e-5)


def test_a_truncation_that_cuts_nothing_changes_nothing():
    log_probs = temper(rows(4), 1.0)
    assert torch.equal(truncate(log_probs, 1.0, 0), log_probs)
    assert torch.equal(truncate(log_probs, 1.0, 40), log_probs)


def test_temperature_0_puts_all_mass_on_the_best_token():
    logits = rows(5)
    warped = warp(logits, 0.0)
    assert torch.equal(warped.argmax(-1), logits.argmax(-1))
    assert torch.equal(warped.exp().sum(-1), torch.ones(3))


def test_each_network_is_cut_before_the_mixing():
    student, teacher = torch.tensor([[3.0, 2.0, 0.0, -9.0]]), torch.tensor([[-9.0, 0.0, 2.0, 3.0]])
    found = Mixture(teacher_mix=0.25, temperature=0.5, top_k=1).step(student, teacher)
    torch.testing.assert_close(found.mass, torch.tensor([[0.75, 0.0, 0.0, 0.25]]))
    log_q, log_p = (student / 0.5).log_softmax(-1)[0, 3], (teacher / 0.5).log_softmax(-1)[0, 3]
    want = torch.stack([torch.tensor(0.25).log(), log_q, log_p])[None]
    torch.testing.assert_close(found.log_probs(torch.tensor([3])), want)


@given(st.floats(0.01, 1), st.floats(0.3, 2), st.integers(0, 1000))
def test_the_log_probs_of_a_token_are_those_it_is_drawn_with(alpha, temperature, seed):
    mixture = Mixture(teacher_mix=alpha, temperature=temperature, top_p=0.95, top_k=30)
    found = mixture.step(rows(seed), rows(seed + 1))
    ids = found.mass.multinomial(1, generator=torch.Generator().manual_seed(seed))[:, 0]
    drawn_with = found.mass.gather(-1, ids[:, None])[:, 0].log()
    torch.testing.assert_close(found.log_probs(ids)[:, 0], drawn_with, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.mass.sum(-1), torch.ones(3))


def test_a_token_that_only_the_teacher_draws_keeps_a_finite_log_q():
    student = torch.tensor([[0.0, -400.0]])
    teacher = torch.tensor([[-400.0, 0.0]])
    found = Mixture(teacher_mix=0.2).step(student, teacher).log_probs(torch.tensor([1]))
    torch.testing.assert_close(found, torch.tensor([[math.log(0.2), -400.0, 0.0]]))


def test_greedy_answers_have_log_prob_0_and_the_students_own_at_temperature_1():
    student = rows(6)
    behaviour, log_q, log_p = Mixture(temperature=0.0).step(student).log_probs(student.argmax(-1)).T
    assert torch.equal(behaviour, torch.zeros(3))
    torch.testing.assert_close(log_q, student.log_softmax(-1).amax(-1))
    assert log_p.isnan().all()


@pytest.mark.parametrize("words", [3, 256, 1000])
def test_draws_have_the_frequencies_of_the_distribution(words):
    mass = temper(rows(7, 1, words, 1.0), 1.0).exp()
    uniforms = torch.from_numpy(np.random.default_rng(0).random(40_000))
    drawn = draw(mass.expand(40_000, -1), uniforms)
    counts = torch.bincount(drawn, minlength=words).numpy()
    want = mass[0].double().numpy()
    assert stats.chisquare(counts, want / want.sum() * counts.sum()).pvalue > 0.001


def test_a_token_without_mass_is_never_drawn():
    mass = torch.zeros(6, 700)
    for row, token in enumerate((0, 255, 256, 511, 512, 699)):
        mass[row, token] = 0.1
    for number in (0.0, 0.3, 1 - 2**-53):
        drawn = draw(mass, torch.full((6,), number, dtype=torch.float64))
        assert drawn.tolist() == [0, 255, 256, 511, 512, 699]


def test_draws_follow_the_order_of_the_cumulative_distribution():
    mass = torch.tensor([0.25, 0.5, 0.0, 0.25])
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-53], dtype=torch.float64)
    assert draw(mass.expand(6, -1), uniforms).tolist() == [0, 0, 1, 1, 3, 3]

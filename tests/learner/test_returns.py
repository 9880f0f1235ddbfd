"""Rewards, returns, whitening statistics and importance weights, held against hand-worked numbers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from minillm_ray.learner.returns import (
    Moments,
    answer_mask,
    importance_weights,
    merged,
    moments,
    per_decision_weights,
    returns,
    reward_to_go,
    rewards,
    tokens_left,
    whitened,
)
from torch import Tensor

REWARD = torch.tensor([[1.0, 2.0, 4.0, 8.0], [3.0, 5.0, 0.0, 0.0]], dtype=torch.float64)
MASK = answer_mask(torch.tensor([4, 2]), 4)


def same(found: Tensor, expected: list[list[float]]) -> bool:
    return torch.allclose(found.double(), torch.tensor(expected, dtype=torch.float64), atol=1e-12)


def test_masks_come_from_lengths():
    assert MASK.tolist() == [[True] * 4, [True, True, False, False]]
    assert not answer_mask(torch.tensor([0]), 3).any()


def test_the_return_sums_what_is_still_to_come():
    assert same(reward_to_go(REWARD), [[15, 14, 12, 8], [8, 5, 0, 0]])
    assert same(reward_to_go(REWARD, 0.5), [[4, 6, 8, 8], [5.5, 5, 0, 0]])


def test_tokens_left_include_the_current_one():
    assert tokens_left(MASK).tolist() == [[4, 3, 2, 1], [2, 1, 0, 0]]


def test_the_papers_return_starts_at_the_next_token():
    ahead = returns(REWARD, MASK, gamma=1.0, ahead=True, length_norm=False)
    assert same(ahead, [[14, 12, 8, 0], [5, 0, 0, 0]])
    normed = returns(REWARD, MASK, gamma=1.0, ahead=True, length_norm=True)
    assert same(normed, [[14 / 3, 6, 8, 0], [5, 0, 0, 0]])


def test_the_references_return_starts_at_the_current_token():
    normed = returns(REWARD, MASK, gamma=0.5, ahead=False, length_norm=True)
    assert same(normed, [[1, 2, 4, 8], [2.75, 5, 0, 0]])


def test_rewards_are_scaled_before_they_are_clipped():
    log_p, log_q = torch.tensor([[-1.0, -9.0, -1.0]]), torch.tensor([[-2.0, -1.0, -1.0]])
    mask = answer_mask(torch.tensor([2]), 3)
    assert same(rewards(log_p, log_q, mask, scaling=0.5, clip=5.0), [[2, -5, 0]])


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_a_perfect_student_earns_nothing(seed: int):
    logprobs = -torch.rand(3, 5, generator=torch.Generator().manual_seed(seed)) * 9
    mask = answer_mask(torch.tensor([5, 1, 3]), 5)
    earned = rewards(logprobs, logprobs, mask, scaling=0.5)
    assert not returns(earned, mask, gamma=0.95, ahead=True, length_norm=True).any()


@given(st.integers(0, 10_000), st.booleans(), st.booleans())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_padding_changes_no_return(seed: int, ahead: bool, length_norm: bool):
    generator = torch.Generator().manual_seed(seed)
    log_p, log_q = torch.randn(2, 3, 5, generator=generator)
    lengths = torch.tensor([5, 1, 3])

    def found(extra: int) -> Tensor:
        p, q = (torch.nn.functional.pad(x, (0, extra), value=float("nan")) for x in (log_p, log_q))
        mask = answer_mask(lengths, 5 + extra)
        return returns(rewards(p, q, mask), mask, gamma=0.9, ahead=ahead, length_norm=length_norm)

    assert torch.equal(found(0), found(4)[:, :5])
    assert not found(4)[:, 5:].any()


@given(st.integers(0, 10_000), st.integers(1, 4))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_merged_moments_are_those_of_one_rank_that_saw_it_all(seed: int, cut: int):
    values = 1e3 + torch.randn(5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    whole = merged([moments(values[:cut], 4 * cut), moments(values[cut:], 4 * (5 - cut))])
    assert whole.mean == pytest.approx(values.mean().item(), rel=1e-12)
    assert whole.variance == pytest.approx(values.var().item(), rel=1e-6)
    assert Moments(*whole.as_list()) == whole


def test_slots_without_a_token_count_as_zeros():
    short, full = moments(torch.tensor([[3.0, 5.0]]), 4), torch.tensor([3.0, 5.0, 0.0, 0.0])
    assert short.mean == pytest.approx(full.mean().item())
    assert short.variance == pytest.approx(full.var().item())
    assert torch.allclose(whitened(full[None], short)[0], (full - full.mean()) / full.std())


def test_too_few_slots_have_no_variance():
    assert Moments().mean == Moments().variance == 0.0
    assert moments(torch.tensor([[2.0]]), 1).variance == 0.0


def test_the_weight_is_one_where_the_student_drew_alone():
    logprobs = -torch.rand(2, 4) * 9
    assert torch.equal(importance_weights(logprobs, logprobs, MASK), torch.ones(2, 4))


def test_per_decision_weights_are_products_over_tokens():
    ratio = torch.tensor([[0.5, 3.0, 2.0, 0.25], [4.0, 0.5, 7.0, 7.0]])
    log_ratio, zero = ratio.log(), torch.zeros(2, 4)
    upto = per_decision_weights(log_ratio, zero, MASK, include_current=True)
    assert torch.allclose(upto, torch.tensor([[0.5, 1.5, 3, 0.75], [4, 2, 0, 0]], dtype=torch.float64))
    before = per_decision_weights(log_ratio, zero, MASK, include_current=False)
    assert torch.allclose(before, torch.tensor([[1, 0.5, 1.5, 3], [1, 4, 0, 0]], dtype=torch.float64))
    capped = per_decision_weights(log_ratio, zero, MASK, include_current=True, cap=2.0)
    assert torch.allclose(capped, torch.tensor([[0.5, 1.5, 2, 0.75], [2, 2, 0, 0]], dtype=torch.float64))


def test_long_products_neither_overflow_nor_vanish():
    slots = 512
    log_ratio = torch.full((1, slots), math.log(1.25))
    mask = answer_mask(torch.tensor([slots]), slots)
    last = per_decision_weights(log_ratio, torch.zeros(1, slots), mask, include_current=True)[0, -1]
    assert last.log().item() == pytest.approx(slots * math.log(1.25), rel=1e-6)
    capped = per_decision_weights(log_ratio * 100, torch.zeros(1, slots), mask, include_current=True, cap=9.0)
    assert capped[0, -1].item() == pytest.approx(9.0)

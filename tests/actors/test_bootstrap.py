import numpy as np
import pytest
from minillm_ray.actors.evaluation.bootstrap import ratio_interval
from scipy import stats


def test_the_mean_is_total_over_count():
    interval = ratio_interval(["a", "a", "b"], [1.0, 2.0, 6.0], [1.0, 1.0, 4.0])
    assert interval.mean == pytest.approx(9 / 6)
    assert interval.prompts == 2


def test_with_one_answer_per_prompt_it_agrees_with_scipy():
    values = np.random.default_rng(0).normal(size=120)
    ours = ratio_interval([str(i) for i in range(120)], values, np.ones(120), draws=20_000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1)
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.01)


def test_more_answers_to_the_same_prompts_do_not_narrow_the_interval():
    prompts = [str(i) for i in range(40)]
    values = np.random.default_rng(0).normal(size=40)
    once = ratio_interval(prompts, values, np.ones(40))
    thrice = ratio_interval(prompts * 3, np.tile(values, 3), np.ones(120))
    assert thrice.high - thrice.low == pytest.approx(once.high - once.low)


def test_intervals_are_apart_only_when_they_do_not_touch():
    low = ratio_interval(["a", "b", "c"], [0.0, 0.1, 0.2], np.ones(3))
    high = ratio_interval(["a", "b", "c"], [9.0, 9.1, 9.2], np.ones(3))
    assert low.apart(high)
    assert high.apart(low)
    assert not low.apart(low)

import numpy as np
import pytest
from minillm_ray.deploy.evaluation.bootstrap import Tally, paired_difference, ratio_interval
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
    assert low.disjoint_from(high)
    assert high.disjoint_from(low)
    assert not low.disjoint_from(low)


def test_the_mean_over_seeds_is_the_mean_of_each_seeds_ratio():
    tally = Tally.of(["a", "b", "a", "b"], [10, 10, 20, 20], [1.0, 3.0, 8.0, 2.0], [1.0, 1.0, 4.0, 1.0])
    assert tally.value() == pytest.approx((4 / 2 + 10 / 5) / 2)
    assert tally.interval().prompts == 2


def test_a_prompt_is_resampled_with_its_answers_of_all_seeds():
    prompts, values = [str(i) for i in range(40)], np.random.default_rng(0).normal(size=40)
    once = Tally.of(prompts, [0] * 40, values, np.ones(40)).interval()
    thrice = Tally.of(prompts * 3, np.repeat([1, 2, 3], 40).tolist(), np.tile(values, 3), np.ones(120))
    assert thrice.interval().high == pytest.approx(once.high)


def test_nothing_to_count_is_no_number_and_no_crash():
    interval = Tally.of(["a", "b"], [0, 0], [0.0, 0.0], [0.0, 0.0]).interval()
    assert np.isnan([interval.mean, interval.low, interval.high]).all()
    assert interval.prompts == 0


def test_a_paired_test_sees_a_small_difference_that_unpaired_intervals_do_not():
    draw = np.random.default_rng(0)
    prompts, ease = [str(i) for i in range(60)], draw.normal(size=60)
    first = Tally.of(prompts, [0] * 60, ease, np.ones(60))
    second = Tally.of(prompts, [0] * 60, ease + 0.2 + 0.1 * draw.normal(size=60), np.ones(60))
    assert not first.interval().disjoint_from(second.interval())
    found = paired_difference(first, second)
    assert found is not None
    assert found.low < 0.2 < found.high
    assert found.low > 0
    assert found.p_value == pytest.approx(2 / 2001)


def test_a_model_does_not_differ_from_itself():
    tally = Tally.of(["a", "b", "c"], [0, 0, 0], [1.0, 2.0, 4.0], np.ones(3))
    found = paired_difference(tally, tally)
    assert found is not None
    assert (found.mean, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_the_p_values_of_equal_models_are_spread_evenly():
    draw = np.random.default_rng(1)
    prompts = [str(i) for i in range(50)]
    found = []
    for _ in range(200):
        pair = [Tally.of(prompts, [0] * 50, draw.normal(size=50), np.ones(50)) for _ in range(2)]
        difference = paired_difference(*pair, draws=200)
        assert difference is not None
        found.append(difference.p_value)
    assert 0.02 < np.mean(np.array(found) < 0.1) < 0.18


def test_models_are_compared_on_the_prompts_that_both_answered():
    first = Tally.of(["a", "b", "c"], [0, 0, 0], [1.0, 2.0, 90.0], np.ones(3))
    second = Tally.of(["b", "a", "d"], [0, 0, 0], [3.0, 2.0, 90.0], np.ones(3))
    found = paired_difference(first, second)
    assert found is not None
    assert (found.mean, found.prompts) == (1, 2)
    assert paired_difference(first.only(["c"]), second) is None

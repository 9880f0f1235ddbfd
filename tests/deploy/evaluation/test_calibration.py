import numpy as np
import pytest
from minillm_ray.deploy.evaluation.calibration import (
    calibration_error,
    choices,
    label_probabilities,
    reliability,
)


def test_label_probabilities_are_renormalised_and_the_mass_before_is_told():
    probabilities, mass = label_probabilities(np.log([[0.3, 0.1], [0.02, 0.02]]))
    np.testing.assert_allclose(probabilities, [[0.75, 0.25], [0.5, 0.5]])
    np.testing.assert_allclose(mass, [0.4, 0.04])


def test_very_small_probabilities_do_not_vanish():
    probabilities, mass = label_probabilities([[-2000.0, -2000.0 - np.log(3)]])
    np.testing.assert_allclose(probabilities, [[0.75, 0.25]])
    assert mass[0] == 0


def test_the_most_probable_label_is_chosen_and_held_against_the_right_one():
    confidence, right = choices(np.array([[0.75, 0.25], [0.4, 0.6]]), [0, 0])
    np.testing.assert_allclose(confidence, [0.75, 0.6])
    assert right.tolist() == [True, False]


def test_calibration_error_of_a_hand_worked_case():
    confidence, right = [0.95, 0.95, 0.65, 0.65, 0.65], [1, 0, 1, 1, 0]
    found = calibration_error(confidence, right)
    assert found.mean == pytest.approx(2 / 5 * abs(0.5 - 0.95) + 3 / 5 * abs(2 / 3 - 0.65))
    assert found.low <= found.mean <= found.high
    assert found.prompts == 5


def test_calibration_error_is_the_weighted_gap_of_the_reliability_table():
    draw = np.random.default_rng(0)
    confidence, right = draw.uniform(size=300), draw.uniform(size=300) < 0.5
    bins = [b for b in reliability(confidence, right) if b.count]
    by_table = sum(b.count / 300 * abs(b.accuracy - b.confidence) for b in bins)
    assert calibration_error(confidence, right).mean == pytest.approx(by_table)


def test_there_are_ten_bins_of_equal_width_and_an_edge_belongs_to_the_bin_below():
    table = reliability([0.0, 0.1, 0.3, 0.1 + 0.2, 0.31, 1.0], [1, 1, 0, 0, 0, 1])
    assert [round(b.low, 9) for b in table] == [n / 10 for n in range(10)]
    assert [b.count for b in table] == [2, 0, 2, 1, 0, 0, 0, 0, 0, 1]
    assert table[9].accuracy == 1
    assert np.isnan(table[1].accuracy)


def test_a_model_as_right_as_it_is_sure_has_hardly_any_error():
    draw = np.random.default_rng(0)
    confidence = draw.uniform(0.5, 1, size=50_000)
    assert calibration_error(confidence, draw.uniform(size=50_000) < confidence, draws=2).mean < 0.01

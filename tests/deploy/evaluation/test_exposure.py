"""Exposure bias against its definition, summed over every text that a tiny model can write."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from minillm_ray.deploy.evaluation.exposure import Divergences, Ended, exposure_bias

WORDS, LONGEST, END = 3, 4, 0
"""Word 0 ends an answer. Probabilities are multiples of 1/PARTS, so that each text can come as often as it is
likely, and a mean over the texts is the expectation itself."""
PARTS = 4
STUDENT = {0: (1, 2, 1), 1: (1, 1, 2), 2: (2, 1, 1)}
TEACHER = {0: (1, 1, 2), 1: (2, 1, 1), 2: (1, 2, 1)}
"""By the last word (0 at the start): how many parts of PARTS each next word has."""


def kl_after(last: int) -> float:
    p, q = np.array(TEACHER[last]) / PARTS, np.array(STUDENT[last]) / PARTS
    return float((p * np.log(p / q)).sum())


def every_text(parts: dict[int, tuple[int, ...]]) -> list[Divergences]:
    """All answers of a model, each as often as PARTS^LONGEST x its probability."""
    found = []
    for draws in itertools.product(range(PARTS), repeat=LONGEST):
        kl, last = [], 0
        for draw in draws:
            kl.append(kl_after(last))
            last = int(np.searchsorted(np.cumsum(parts[last]), draw, side="right"))
            if last == END:
                break
        found.append(Divergences(prompt_id="x/0", kl=np.array(kl, np.float32)))
    return found


def by_definition(parts: dict[int, tuple[int, ...]], ended: Ended) -> np.ndarray:
    """E[KL(p || q) at t] for t = 1 .. LONGEST, by walking the distribution of the last word."""
    alive = {0: 1.0}
    means = []
    for _ in range(LONGEST):
        total = sum(mass * kl_after(last) for last, mass in alive.items())
        means.append(total / sum(alive.values()) if ended == "left_out" else total)
        ahead = dict.fromkeys(range(1, WORDS), 0.0)
        for last, mass in alive.items():
            for word in ahead:
                ahead[word] += mass * parts[last][word] / PARTS
        alive = ahead
    return np.array(means)


@pytest.mark.parametrize("ended", ["left_out", "as_zero"])
def test_all_texts_of_a_model_give_the_curves_of_the_definition(ended: Ended):
    found = exposure_bias(every_text(STUDENT), every_text(TEACHER), ended=ended, draws=3)
    accumulated = by_definition(STUDENT, ended).cumsum()
    ideal = by_definition(TEACHER, ended).cumsum()
    np.testing.assert_allclose(found.accumulated.value, accumulated, rtol=1e-6)
    np.testing.assert_allclose(found.per_step.value, ideal / np.arange(1, 5), rtol=1e-6)
    np.testing.assert_allclose(found.excess.value, 100 * (accumulated - ideal) / ideal, rtol=1e-5, atol=1e-5)


def test_counting_ended_answers_as_zero_flattens_the_curve():
    left_out = exposure_bias(every_text(STUDENT), every_text(TEACHER), draws=3)
    as_zero = exposure_bias(every_text(STUDENT), every_text(TEACHER), ended="as_zero", draws=3)
    assert left_out.accumulated.value[0] == pytest.approx(as_zero.accumulated.value[0])
    assert (np.diff(left_out.accumulated.value) > np.diff(as_zero.accumulated.value)).all()


def answers(*rows: list[float]) -> list[Divergences]:
    return [Divergences(prompt_id=f"x/{i}", kl=np.array(row)) for i, row in enumerate(rows)]


def test_a_hand_worked_case():
    student, teacher = answers([1.0, 3.0, 2.0], [3.0]), answers([1.0, 1.0], [1.0, 1.0])
    found = exposure_bias(student, teacher, draws=3)
    assert found.accumulated.value.tolist() == [2.0, 5.0]
    assert found.per_step.value.tolist() == [1.0, 1.0]
    assert found.excess.value.tolist() == [100.0, 150.0]
    assert found.answers.tolist() == [2, 1]
    zero = exposure_bias(student, teacher, ended="as_zero", draws=3)
    assert zero.excess.value.tolist() == [100.0, 75.0]


def test_a_student_on_the_teachers_prefixes_has_no_excess():
    same = answers([0.5, 0.2, 0.9], [0.1, 0.3])
    found = exposure_bias(same, same)
    np.testing.assert_array_equal(found.excess.value, 0)
    np.testing.assert_array_equal(found.excess.low, 0)
    np.testing.assert_array_equal(found.excess.high, 0)


def test_the_band_holds_the_value_and_narrows_with_more_prompts():
    draw = np.random.default_rng(0)
    many = [answers(*draw.gamma(2, size=(400, 5)).tolist()) for _ in range(2)]
    few = [side[:25] for side in many]
    widths = []
    for student, teacher in (few, many):
        curve = exposure_bias(student, teacher).excess
        assert (curve.low <= curve.value).all()
        assert (curve.value <= curve.high).all()
        widths.append((curve.high - curve.low).mean())
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.4)


def test_a_perfect_student_has_no_number_for_a_share_of_nothing():
    found = exposure_bias(answers([0.0, 0.0]), answers([0.0, 0.0]), draws=3)
    assert found.accumulated.value.tolist() == [0, 0]
    assert np.isnan(found.excess.value).all()


def test_without_answers_there_is_no_length():
    assert len(exposure_bias(answers([1.0]), [], draws=3).answers) == 0

"""Probes hold what goes wrong in practice, and whoever reads them differently is named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from minillm_ray.common.types import Floats, Passage
from minillm_ray.deploy.runtime.probes import BEYOND, REFEREE, Gap, ProbeLogprobs, compare, make_probes

TEXTS = [np.arange(5, 35, dtype=np.int32), np.arange(50, 60, dtype=np.int32)]


def length(probe: Passage) -> int:
    return len(probe.prompt_ids) + len(probe.answer_ids)


@given(st.integers(2, 5000), st.lists(st.integers(1, 6000), max_size=3))
def test_no_probe_is_longer_than_a_sequence_of_the_run_and_each_has_prompt_and_answer(longest, thresholds):
    probes = make_probes(TEXTS, longest=longest, thresholds=thresholds)
    assert all(length(probe) <= longest for probe in probes)
    assert all(len(probe.prompt_ids) and len(probe.answer_ids) for probe in probes)
    assert len({probe.prompt_id for probe in probes}) == len(probes)
    known = set(np.concatenate(TEXTS).tolist())
    assert all(set(probe.prompt_ids.tolist()) <= known for probe in probes)
    for threshold in thresholds:
        if threshold + 1 < longest:
            assert any(length(probe) > threshold for probe in probes)


def test_one_probe_comes_twice_one_is_short_and_one_goes_beyond_a_window():
    probes = {probe.prompt_id: probe for probe in make_probes(TEXTS, longest=400, thresholds=[64, 4096])}
    assert np.array_equal(probes["probe/again"].answer_ids, probes["probe/ordinary-0"].answer_ids)
    assert length(probes["probe/short"]) == 4
    assert length(probes["probe/beyond-64"]) == 64 + BEYOND


def reading(
    process: str, *logprobs: list[float], model: str = "student", dtype: str = "float32"
) -> ProbeLogprobs:
    rows: list[Floats] = [np.array(row, np.float32) for row in logprobs]
    return ProbeLogprobs(process=process, model=model, dtype=dtype, logprobs=rows)


def gaps(*readings: ProbeLogprobs, tolerance: float = 1e-3) -> dict[str, Gap]:
    probes = make_probes(TEXTS, longest=100)[:2]
    found = compare(probes, readings, lambda one, base: tolerance, 0.7)
    return {gap.process: gap for gap in found}


def test_who_is_too_far_from_the_referee_is_found_with_the_probe():
    found = gaps(
        reading("rollout-0", [-1.0, -2.0], [-3.0, -4.5]),
        reading("learner-0", [-1.0, -2.0], [-3.0, -4.0005]),
        reading(REFEREE, [-1.0, -2.0], [-3.0, -4.0]),
    )
    assert found["learner-0"].agrees
    assert found["rollout-0"].against == REFEREE
    assert found["rollout-0"].probe == "probe/ordinary-1"
    assert found["rollout-0"].largest == pytest.approx(0.5)
    assert found["rollout-0"].within == 0.75
    assert found["rollout-0"].agrees  # three of four tokens are enough here
    assert not gaps(reading(REFEREE, [0.0, 0.0], [0.0, 0.0]), reading("a-0", [1.0, 1.0], [0.0, 0.0]))[
        "a-0"
    ].agrees


def test_without_a_referee_processes_are_compared_with_each_other_model_by_model():
    found = gaps(
        reading("rollout-0", [-1.0, -1.0], [-1.0, -1.0]),
        reading("learner-0", [-9.0, -9.0], [-9.0, -9.0]),
        reading("teacher-0", [-5.0, -5.0], [-5.0, -5.0], model="teacher"),
    )
    assert set(found) == {"learner-0"}
    assert found["learner-0"].against == "rollout-0"
    assert not found["learner-0"].agrees


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_what_is_no_number_agrees_with_nothing(value):
    found = gaps(reading(REFEREE, [value] * 2, [value] * 2), reading("a-0", [value] * 2, [value] * 2))
    assert not found["a-0"].agrees

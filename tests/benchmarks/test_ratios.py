"""What the benchmarks make of the times they took."""

from __future__ import annotations

from typing import Any

import pytest
from minillm_ray.benchmarks.__main__ import ratios
from minillm_ray.benchmarks.ours import PARTS, seconds_of
from minillm_ray.benchmarks.padding import padding


def run(speed: float, **parts: float) -> dict[str, Any]:
    seconds = {"rollout/set_s": 2.0, "teacher/set_s": 3.0, "learner/step_s": 5.0}
    moved = {"weights/publish_s": 0.1, "weights/load_s": 0.3}
    return {"trained_tokens_per_s": speed, "seconds": 12.0, "parts": seconds | moved | parts}


ALONE = {
    "peak": {"gflops": 200.0},
    "sample_student": {"seconds": 1.9},
    "sample_teacher": {"seconds": 4.1},
    "score": {"seconds": 2.7},
    "step": {"seconds": 4.0},
    "load": {"seconds": 0.2},
}


def test_each_ratio_is_that_of_its_worst_cell_and_all_cells_are_told() -> None:
    small = {"ours_reverse_kl": run(90.0), "distillation": run(60.0)}
    large = {"ours_reverse_kl": run(80.0), "distillation": run(100.0)}
    found = ratios({"race": {"small": small, "large": large}})
    assert found["race_distillation"] == pytest.approx(0.8)
    assert found["by_cell"]["race_distillation"] == pytest.approx({"small": 1.5, "large": 0.8})
    assert "race_gkd" not in found


def test_parts_are_held_against_the_bare_loops_that_ran_beside_them() -> None:
    mixed = run(1.0, **{"rollout/set_s": 5.4})
    raw = {"race": {"small": {"ours_logprobs": run(1.0), "ours_minillm": mixed}}, "parts": {"small": ALONE}}
    found = ratios(raw)
    assert found["rollout_vs_bare"] == pytest.approx(0.95)
    assert found["scoring_vs_bare"] == pytest.approx(0.9)
    assert found["learner_vs_bare"] == pytest.approx(0.8)
    assert found["mixing_cost"] == pytest.approx(0.9)
    assert found["iteration_vs_sum_of_parts"] == pytest.approx(12 / 8.8)
    assert found["weight_update_vs_load"] == pytest.approx(2.0)
    assert found["weight_update_share"] == pytest.approx(0.4 / 12)


def test_a_part_s_share_of_the_peak_is_its_products_with_weights_over_its_seconds() -> None:
    mixed = run(1.0, **{"rollout/set_s": 6.0})
    raw = {"race": {"small": {"ours_logprobs": run(1.0), "ours_minillm": mixed}}, "parts": {"small": ALONE}}
    found = ratios(raw)
    # 16 answers of 48 tokens to 43: the template's 24 once (for a micro-batch of 8 in a step), 66 of each.
    layer, head, drawn, slots = 3_540_096, 49152 * 576, 16 * 48, 24 + 16 * 66
    student, teacher = 2 * (10 * layer * slots + head * drawn), 2 * (30 * layer * slots + head * drawn)
    step = 6 * 10 * layer * (slots + 24) + 8 * head * drawn
    peak = 200e9
    assert found["rollout_peak_share"] == pytest.approx(student / 2 / peak)
    assert found["scoring_peak_share"] == pytest.approx(teacher / 3 / peak)
    assert found["learner_peak_share"] == pytest.approx(step / 5 / peak)
    assert found["mixing_peak_share"] == pytest.approx((student + teacher) / 6 / peak)
    assert found["iteration_peak_share"] == pytest.approx((student + teacher + step) / 12 / peak)


def test_what_was_not_measured_has_no_ratio() -> None:
    assert ratios({}) == {"by_cell": {}}
    assert ratios({"start": {"python_s": 0.02, "import_s": 0.03}})["import_vs_python"] == pytest.approx(1.5)


def test_neither_the_first_nor_the_last_iteration_counts() -> None:
    lines = [{PARTS[0]: float(n), "run/iteration_s": 10.0 * n} for n in range(1, 6)]
    seconds, parts = seconds_of(lines)
    assert seconds == [20.0, 30.0, 40.0]
    assert parts[PARTS[0]] == [2.0, 3.0, 4.0]


def test_fewer_than_one_slot_in_twenty_is_empty_and_ranks_carry_alike() -> None:
    found = padding()
    assert ratios({"padding": found})["padding_waste"] == max(one["waste"] for one in found.values()) < 0.05
    assert all(one["fullest_rank"] < 1.05 for one in found.values())

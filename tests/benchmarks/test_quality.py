"""What time to quality makes of its runs: when a curve is there, which rate is best, and the ratios."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from minillm_ray.benchmarks.quality import __main__ as quality
from minillm_ray.benchmarks.quality.contest import OURS, OWN, Entry, Start, reached, settings
from minillm_ray.benchmarks.quality.summary import RATIOS, summary
from minillm_ray.common.config.run import RunConfig


def looks(*reverse_kls: float) -> list[dict[str, float]]:
    return [
        {"step": 16 * n, "seconds": 10.0 * n, "tokens": 100 * n, "reverse_kl": kl}
        for n, kl in enumerate(reverse_kls)
    ]


def run(name: str, seconds: float | None, *, lr: float = 1e-3) -> dict[str, Any]:
    there = None if seconds is None else {"seconds": seconds, "tokens": 10 * seconds, "step": seconds}
    return {"name": name, "lr": lr, "reached": there, "looks": looks(0.9, 0.8), "start_up_s": 20.0}


def test_a_curve_is_there_where_it_comes_down_to_stay_and_that_is_read_between_two_looks() -> None:
    at = reached(looks(0.9, 0.7, 0.5, 0.5), 0.6)
    assert at is not None
    assert (at["seconds"], at["tokens"], at["step"]) == pytest.approx((15.0, 150.0, 24.0))
    dip = reached(looks(0.9, 0.5, 0.7, 0.5, 0.4), 0.6)
    assert dip is not None
    assert dip["seconds"] == pytest.approx(25.0)


def test_a_curve_that_was_below_but_once_is_not_there() -> None:
    assert reached(looks(0.9, 0.7, 0.5), 0.6) is None
    assert reached(looks(0.9, 0.5, 0.7), 0.6) is None
    assert reached(looks(0.9), 0.6) is None


class Known:
    """Stands for a ring: seconds to the threshold by learning rate."""

    def __init__(self, seconds: dict[float, float]):
        self._seconds, self.caps = seconds, {}

    def run(self, entry: Entry, cap_s: float) -> dict[str, Any]:
        self.caps[entry.lr] = cap_s
        found = self._seconds.get(entry.lr)
        return run(entry.name, found if found and found <= cap_s else None, lr=entry.lr)


@pytest.mark.parametrize(
    ("seconds", "tried", "best"),
    [
        ({1e-3: 50.0, 3e-4: 60.0, 3e-3: 70.0}, [1e-3, 3e-4, 3e-3], 1e-3),
        ({1e-3: 50.0, 3e-4: 60.0, 3e-3: 40.0}, [1e-3, 3e-4, 3e-3, 1e-2], 3e-3),
        ({1e-3: 50.0, 3e-4: 40.0, 1e-4: 30.0}, [1e-3, 3e-4, 3e-3, 1e-4, 3e-5], 1e-4),
    ],
)
def test_the_search_goes_on_beyond_an_edge_until_the_best_rate_has_neighbours(
    seconds: dict[float, float], tried: list[float], best: float
) -> None:
    ring: Any = Known(seconds)
    runs = quality.search(ring, "distillation")
    assert [found["lr"] for found in runs] == tried
    assert quality.best_rate(runs) == best


def test_a_rate_whose_student_broke_is_not_chosen() -> None:
    broken, whole = (run("distillation", None, lr=lr) for lr in (1e-2, 1e-3))
    broken["looks"] = looks(0.9, math.nan)
    assert quality.best_rate([broken, whole]) == quality.best_rate([whole, broken]) == 1e-3


def test_a_rate_is_not_chosen_for_the_minute_in_which_it_was_tried() -> None:
    slow, quick = run("distillation", 50.0, lr=1e-3), run("distillation", 45.0, lr=3e-4)
    slow["reached"]["step"], quick["reached"]["step"] = 175, 190
    assert quality.best_rate([slow, quick]) == 1e-3


def test_a_run_of_the_search_ends_when_it_can_no_longer_win() -> None:
    ring: Any = Known({1e-3: 50.0, 3e-4: 70.0})
    quality.search(ring, "distillation")
    assert ring.caps[1e-3] == quality.CAP_S
    assert ring.caps[3e-4] == pytest.approx(quality.PATIENCE * 50)


def test_ratios_are_of_medians_and_say_how_many_times_less_ours_needs() -> None:
    runs = {
        "ours_minillm": [run("ours_minillm", s) for s in (10.0, 20.0, 90.0)],
        "ours_fresh": [run("ours_fresh", s) for s in (30.0, None, None)],
        "distillation": [run("distillation", s) for s in (50.0, 60.0, None)],
    }
    found = summary({name: several[:1] for name, several in runs.items()}, runs)
    assert found["time_to_quality_vs_trl"] == pytest.approx(3.0)
    assert found["tokens_to_quality_vs_trl"] == pytest.approx(3.0)
    assert found["time_to_quality_fresh_vs_trl"] is None
    assert found["contenders"]["distillation"]["all_seconds"] == [50.0, 60.0, None]
    assert set(RATIOS) <= set(found)


@pytest.mark.parametrize("name", OURS)
def test_our_contenders_settings_are_those_of_a_run(name: str, tmp_path: Path) -> None:
    start = Start(tmp_path / "student", tmp_path / "teacher", tmp_path / "prompts.jsonl")
    config = RunConfig.model_validate(settings(Entry(name=name, lr=1e-3, seed=1), start, tmp_path))
    assert config.faults() == []
    assert config.steps_per_set <= OWN[name]["every"]
    assert config.num_iterations == (4 if name == "ours_minillm" else 1)

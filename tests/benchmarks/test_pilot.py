"""What the pilot makes of its runs' metrics."""

from __future__ import annotations

from typing import Any

import pytest
from minillm_ray.benchmarks.pilot import verdict


def _points(*reverse_kls: float) -> list[dict[str, float]]:
    return [
        {"seconds": 10.0 * n, "trained_positions": 100.0 * n, "sampled_tokens": 50.0 * n, "reverse_kl": kl}
        for n, kl in enumerate(reverse_kls)
    ]


def test_cost_to_a_quality_is_read_between_two_looks_and_seqkd_pays_for_its_answers() -> None:
    curves = {
        "opd-0": _points(2.0, 1.0, 0.0),
        "opd-1": _points(2.0, 1.2, 0.4),
        "seqkd-0": _points(2.0, 1.6, 0.4),
        "sft-0": _points(2.0, 1.9, 1.8),
    }
    # opd ends lowest, at 0.2 on average: half of the way is 1.1.
    rows = {
        (row["method"], row["way"]): row
        for row in verdict._to_quality(curves, {"seconds": 7.0, "sampled_tokens": 1000})
    }

    half = rows["opd", 0.5]
    assert half["reverse_kl"] == pytest.approx(1.1)
    assert (half["runs"], half["reached"]) == (2, 2)
    assert half["seconds"] == pytest.approx((9.0 + 11.25) / 2, abs=0.06)
    assert half["trained_positions"] == pytest.approx((90 + 112.5) / 2, abs=0.06)
    assert rows["seqkd", 0.5]["seconds"] == pytest.approx(10 + 10 * 0.5 / 1.2 + 7, abs=0.06)
    assert rows["seqkd", 0.5]["sampled_tokens"] == pytest.approx(50 + 50 * 0.5 / 1.2 + 1000, abs=0.06)
    assert rows["sft", 0.5]["reached"] == 0
    assert rows["sft", 0.5]["seconds"] is None


def test_a_metric_tells_methods_apart_only_where_the_gap_is_three_spreads_wide() -> None:
    def row(value: float) -> dict[str, Any]:
        return {"value": value, "low": value - 1, "high": value + 1}

    def table(metric: str, models: dict[str, Any], *, guesses: bool) -> dict[str, Any]:
        found = verdict._table(("test", metric, "all"), models, guesses)
        assert found is not None
        return found

    near = {f"sft-{n}/last": row(50.0 + n) for n in range(3)}
    models = {"teacher/last": row(60.0), "start/last": row(57.5), **near}
    assert not table("rouge_l", models, guesses=False)["tells_methods_apart"]
    models["start/last"] = row(56.9)
    wide = table("rouge_l", models, guesses=False)
    assert wide["gap"] == pytest.approx(3.1)
    assert wide["largest_spread"] == pytest.approx(1.0)
    assert wide["tells_methods_apart"]
    at_chance = table("ece", models, guesses=True)
    assert at_chance["uninformative_at_chance"]
    assert not at_chance["tells_methods_apart"]

"""What engines take is what was measured, and the documents show the numbers that are kept."""

from __future__ import annotations

import json

from minillm_ray.benchmarks import families as benchmark
from minillm_ray.deploy.models.families import NO_USE, NOT_IN_ENGINE, TRIED
from minillm_ray.tests.family_models import FAMILIES, PROMISED, Family

KEPT = json.loads(benchmark.RESULTS.read_text(encoding="utf-8"))


def type_of(name: str) -> str:
    return FAMILIES.get(name, Family(name)).type


def test_an_engine_takes_exactly_the_families_that_measured_well():
    exact = {type_of(name) for name, row in KEPT["families"].items() if benchmark.exact(row)}
    assert exact == TRIED
    assert {type_of(name) for name in PROMISED} <= TRIED


def test_every_other_family_of_the_table_is_refused_with_a_reason_of_its_own():
    rest = {type_of(name) for name, row in KEPT["families"].items() if not benchmark.exact(row)}
    assert rest <= {*NOT_IN_ENGINE, *NO_USE}
    assert not TRIED & {*NOT_IN_ENGINE, *NO_USE}


def test_the_page_shows_what_was_kept():
    assert benchmark.table(KEPT) in benchmark.PAGE.read_text(encoding="utf-8")


def test_a_gap_or_a_refusal_is_not_exact_and_rows_that_cannot_be_shared_are():
    row: benchmark.Row = {column: 1e-6 for column in benchmark.COLUMNS}
    assert benchmark.exact(row)
    assert benchmark.exact({**row, "packed": None})
    for bad in (None, 1e-3, float("inf"), "ModelError: no"):
        assert not benchmark.exact({**row, "teacher": bad})

"""Rows of an evaluation, from figures that were written down by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from minillm_ray.deploy.evaluation.buckets import ALL
from minillm_ray.deploy.evaluation.rows import (
    AnswerFigures,
    GivenFigures,
    LabelFigures,
    Part,
    comparisons_of,
    rows_of,
)
from minillm_ray.deploy.evaluation.store import EvalDir, slug


def answer(prompt: str, seed: int, rouge: float | None, *, tokens: int = 4, kl: float = 2.0) -> AnswerFigures:
    return AnswerFigures(
        prompt_id=prompt, sample=0, seed=seed, rouge_l=rouge, exact_match=None, accuracy=None, tokens=tokens,
        finished=tokens < 8, repeated_grams=1.0, grams=5.0, reverse_kl=kl, forward_kl=None,
    )  # fmt: skip


def part(model: str, more: float = 0.0) -> Part:
    return Part(
        model=model,
        data="asked",
        answers=[
            answer("short", 10, 20 + more), answer("long", 10, 60 + more, tokens=8, kl=10.0),
            answer("short", 20, 40 + more), answer("long", 20, 80 + more, tokens=8, kl=10.0),
        ],
        words={"short": 3, "long": 12},
        distinct={10: (8.0, 10.0), 20: (6.0, 10.0)},
        given=[
            GivenFigures(prompt_id="short", nll=6.0, tokens=2),
            GivenFigures(prompt_id="long", nll=6.0, tokens=6),
        ],
        labels=[
            LabelFigures(prompt_id=f"l/{n}", confidence=0.95, right=n > 0, mass=0.5) for n in range(4)
        ],
    )  # fmt: skip


def one(rows, metric, bucket=ALL, seed=None):
    (found,) = [r for r in rows if (r["metric"], r["bucket"], r["seed"]) == (metric, bucket, seed)]
    return found


def test_each_seed_has_a_row_and_their_mean_has_one_with_an_interval():
    rows = rows_of(part("m"))
    assert [one(rows, "rouge_l", seed=s)["value"] for s in (10, 20)] == [40, 60]
    mean = one(rows, "rouge_l")
    assert (mean["value"], mean["n"]) == (50, 4)
    assert mean["low"] < 50 < mean["high"]


def test_answers_are_sorted_by_the_length_of_their_reference_and_an_empty_bucket_is_told():
    rows = rows_of(part("m"))
    assert one(rows, "rouge_l", "[0,5]")["value"] == 30
    assert one(rows, "rouge_l", "[11,inf)")["value"] == 70
    empty = one(rows, "rouge_l", "[6,10]")
    assert (empty["value"], empty["low"], empty["n"]) == (None, None, 0)


def test_per_token_figures_are_sums_over_tokens_and_per_answer_figures_are_not():
    rows = rows_of(part("m"))
    assert one(rows, "reverse_kl")["value"] == pytest.approx(12 / 12)
    assert one(rows, "lm_loss")["value"] == pytest.approx(12 / 8)
    assert one(rows, "answer_tokens")["value"] == 6
    assert one(rows, "eos_rate")["value"] == 50
    assert one(rows, "repetition")["value"] == pytest.approx(20)


def test_distinct_4_is_a_mean_over_seeds_without_an_interval():
    row = one(rows_of(part("m")), "distinct_4")
    assert (row["value"], row["low"]) == (pytest.approx(70), None)


def test_calibration_comes_with_its_diagram():
    rows = rows_of(part("m"))
    assert one(rows, "label_accuracy")["value"] == 75
    assert one(rows, "ece")["value"] == pytest.approx(0.2)
    assert one(rows, "label_mass")["value"] == 0.5
    assert one(rows, "reliability_accuracy", "0.9-1.0")["n"] == 4
    assert one(rows, "reliability_accuracy", "0.0-0.1")["value"] is None


def test_only_figures_that_are_wanted_have_rows():
    alone = replace(part("m"), metrics=("rouge_l",))
    assert {row["metric"] for row in rows_of(alone)} == {"rouge_l"}


def test_two_models_are_compared_prompt_by_prompt():
    few = replace(part("b", more=5.0), metrics=("rouge_l", "lm_loss", "calibration"))
    tests = comparisons_of([part("a"), few])
    row = next(t for t in tests if (t["metric"], t["bucket"]) == ("rouge_l", ALL))
    assert (row["a"], row["b"], row["difference"]) == ("a", "b", pytest.approx(5))
    assert row["low"] == row["high"] == pytest.approx(5)  # each prompt gained as much
    assert {t["metric"] for t in tests} == {"rouge_l", "lm_loss", "label_accuracy"}
    assert not any(t["bucket"] == "[6,10]" for t in tests)


def test_a_part_comes_back_from_its_folder_unless_its_mark_changed(tmp_path):
    folder = EvalDir(tmp_path)
    folder.keep(part("a/b"), "mark")
    assert folder.kept("a/b", "asked", "mark") == part("a/b")
    assert folder.others([]) == [part("a/b")]
    assert folder.others([("a/b", "asked")]) == []
    assert folder.kept("a/b", "asked", "another") is None
    assert folder.kept("a-b", "asked", "mark") is None
    json.dumps(part("a/b").to_json())


def test_unlike_names_are_unlike_folders():
    assert len({slug(name) for name in ("a/b", "a-b", "a b", "/a/b", "a.b")}) == 5
    assert slug("gpt2") == "gpt2"

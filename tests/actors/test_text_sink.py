"""What each answer is worth as text, written down by hand, and what is written of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from minillm_ray.actors.text_sink import AnswerScore, TextSink
from minillm_ray.common.types import Rollout, Scored
from minillm_ray.tests.actors.words import rollout, word_tokenizer


def scored(passage: Rollout) -> Scored:
    logprobs = np.full(len(passage.answer_ids), -0.5, np.float32)
    return Scored(passage=passage, teacher_logprobs=logprobs, plain_teacher_logprobs=logprobs, hidden=None)


@pytest.fixture
def sink() -> TextSink:
    return TextSink(word_tokenizer("the", "cat", "sat", "mat"))


def test_a_set_can_be_read_with_pandas_and_loses_nothing(sink, tmp_path):
    first, second = rollout([3, 4, 0]), rollout([2, 2], sample=1, finish="length")
    sink.write_set(tmp_path / "rollouts" / "set-00007.parquet", 7, [scored(first), scored(second)], version=3)
    table = pd.read_parquet(tmp_path / "rollouts" / "set-00007.parquet")
    assert list(table["set"]) == [7, 7]
    assert list(table["answer"]) == ["sat mat", "cat cat"]
    assert list(table["finish"]) == ["stop", "length"]
    assert list(table["newest"]) == [3, 3]
    np.testing.assert_array_equal(table["answer_ids"][0], first.answer_ids)
    np.testing.assert_allclose(
        table["weights"][1], np.exp(second.student_logprobs - second.behaviour_logprobs)
    )
    np.testing.assert_allclose(table["teacher_logprobs"][0], np.full(3, -0.5))


def test_health_signals_are_counts_over_the_whole_set(sink, tmp_path):
    metrics = sink.write_set(
        tmp_path / "set.parquet",
        0,
        [scored(rollout([1, 2, 3, 4, 1, 2, 3, 4])), scored(rollout([1, 2, 3, 4], finish="length"))],
        version=5,
    )
    assert metrics["rollout/weight_age"] == (4, 2)  # both were drawn by version 3
    assert metrics["rollout/answer_tokens"] == (12, 2)
    assert metrics["rollout/eos_rate"] == (1, 2)
    assert metrics["rollout/distinct_4"] == (4, 6)
    assert metrics["rollout/repetition"] == (1, 6)
    assert metrics["rollout/weight_mean"] == pytest.approx((12 * np.exp(-0.5), 12))
    assert metrics["rollout/weight_p50"][0] == pytest.approx(np.exp(-0.5))
    assert metrics["rollout/sampled_kl"][0] / 12 == pytest.approx(-1.0)


def test_what_the_teacher_was_not_asked_is_empty_and_no_metric(sink, tmp_path):
    unasked = replace(scored(rollout([3, 4, 0])), teacher_logprobs=None, plain_teacher_logprobs=None)
    metrics = sink.write_set(tmp_path / "set.parquet", 0, [unasked], version=3)
    assert pd.read_parquet(tmp_path / "set.parquet")["teacher_logprobs"][0] is None
    assert "rollout/sampled_kl" not in metrics
    assert metrics["rollout/answer_tokens"] == (3, 1)


def test_answers_without_references_have_no_text_score(sink):
    [with_reference] = sink.score([rollout([3, 0])], {"train/1": ("sat",)})
    [without] = sink.score([rollout([3, 0])], {})
    assert (with_reference.rouge_l, with_reference.exact_match) == (100, 100)
    assert (without.rouge_l, without.exact_match) == (None, None)
    assert with_reference.accuracy is without.accuracy is None  # there is no rule for a verdict


def test_examples_are_the_first_answers_to_the_first_prompts(sink):
    answers = [rollout([n, 0], f"train/{n}", sample=sample) for n in (1, 2, 3) for sample in (0, 1)]
    assert sink.examples(answers, 2) == [("train/1", 0, "the"), ("train/2", 0, "cat")]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> tuple[dict[str, AnswerScore], pd.DataFrame]:
    file = tmp_path_factory.mktemp("evaluation") / "answers" / "seed-10.parquet"
    answers = [
        rollout([1, 2, 3, 4, 5, 6, 0], "sum/0"),  # so the answer is 12 .
        rollout([7], "sum/1", finish="length"),  # 7
        rollout([2, 3, 4, 5, 2, 3, 4, 5], "sum/2", finish="length"),  # the answer is 12 the answer is 12
        rollout([7, 0], "sum/3"),
    ]
    found = TextSink(word_tokenizer("so", "the", "answer", "is", "12", ".", "7")).write_answers(
        file,
        answers,
        seed=10,
        prompts={"sum/0": "5 + 7?"},
        references={"sum/0": ["12"], "sum/1": ["12", "7."], "sum/2": ["12"]},
        rule="last_number",
    )
    # "so the answer is", "the answer is 12", "answer is 12 .", "is 12 the answer", "12 the answer is", and
    # "answer is 12 the": different ones of the eight 4-grams.
    assert (found.distinct_grams, found.grams) == (6, 8)
    return {score.prompt_id: score for score in found.scores}, pd.read_parquet(file)


def test_a_verdict_is_found_in_an_answer_that_says_more(evaluated):
    scores, _ = evaluated
    assert [scores[f"sum/{n}"].accuracy for n in range(4)] == [100, 100, 100, None]


def test_exact_match_wants_all_of_a_reference_but_for_case_and_punctuation(evaluated):
    scores, _ = evaluated
    assert [scores[f"sum/{n}"].exact_match for n in range(4)] == [0, 100, 0, None]


def test_rouge_l_is_of_the_best_reference_and_of_nothing_without_one(evaluated):
    scores, _ = evaluated
    # "so the answer is 12": one of five words is the reference's one: P = 1/5, R = 1, F = 1/3.
    assert scores["sum/0"].rouge_l == pytest.approx(100 / 3)
    assert scores["sum/1"].rouge_l == pytest.approx(100)
    assert scores["sum/3"].rouge_l is None


def test_length_end_and_repetition_are_counted(evaluated):
    scores, _ = evaluated
    assert [scores[f"sum/{n}"].tokens for n in range(4)] == [7, 1, 8, 2]
    assert [scores[f"sum/{n}"].finished for n in range(4)] == [True, False, False, True]
    # Of the five 4-grams of "the answer is 12 the answer is 12" the last is the first again.
    assert (scores["sum/2"].repeated_grams, scores["sum/2"].grams) == (1, 5)


def test_every_answer_is_written_with_its_scores(evaluated):
    _, table = evaluated
    assert table["answer"].tolist()[:2] == ["so the answer is 12 .", "7"]
    assert table["prompt"].tolist() == ["5 + 7?", "", "", ""]
    assert [list(one) for one in table["references"]] == [["12"], ["12", "7."], ["12"], []]
    assert table["accuracy"].tolist()[:3] == [100, 100, 100]
    assert table["answer_ids"].iloc[2].tolist() == [2, 3, 4, 5, 2, 3, 4, 5]
    assert set(table["seed"]) == {10}


def test_a_score_is_the_same_wherever_it_is_taken(evaluated):
    scores, _ = evaluated
    sink = TextSink(word_tokenizer("so", "the", "answer", "is", "12", ".", "7"))
    [alone] = sink.score([rollout([1, 2, 3, 4, 5, 6, 0], "sum/0")], {"sum/0": ["12"]})
    assert replace(alone, accuracy=100.0) == scores["sum/0"]

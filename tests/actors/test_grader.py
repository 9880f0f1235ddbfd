"""What each answer of an evaluation is worth, written down by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from minillm_ray.actors.grader import Grade, Grader
from minillm_ray.common.types import Rollout, WeightVersion

WORDS = ["<end>", "so", "the", "answer", "is", "12", ".", "7", "Twelve"]


class Decoder:
    """Token ids are places in WORDS; 0 is the end-of-sequence token."""

    def decode(self, token_ids: Any, *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return " ".join(WORDS[int(i)] for i in token_ids if i != 0)


def rollout(prompt: str, words: list[int], finish: Any) -> Rollout:
    ids = np.array(words, np.int32)
    zeros = np.zeros(len(ids), np.float32)
    return Rollout(
        prompt_id=prompt, prompt_ids=np.array([1], np.int32), answer_ids=ids, sample=0,
        behaviour_logprobs=zeros, student_logprobs=zeros, mixed_teacher_logprobs=None,
        oldest=WeightVersion(0), newest=WeightVersion(0), finish=finish,
    )  # fmt: skip


@pytest.fixture(scope="module")
def graded(tmp_path_factory) -> tuple[dict[str, Grade], pd.DataFrame]:
    file = tmp_path_factory.mktemp("grader") / "answers" / "seed-10.parquet"
    answers = [
        rollout("sum/0", [1, 2, 3, 4, 5, 6, 0], "stop"),  # so the answer is 12 .
        rollout("sum/1", [7], "length"),  # 7
        rollout("sum/2", [2, 3, 4, 5, 2, 3, 4, 5], "length"),  # the answer is 12 the answer is 12
        rollout("sum/3", [7, 0], "stop"),
    ]
    found = Grader(Decoder()).grade(
        answers,
        seed=10,
        prompts={"sum/0": "5 + 7?"},
        references={"sum/0": ["12"], "sum/1": ["12", "7."], "sum/2": ["12"]},
        rule="last_number",
        file=file,
    )
    return {grade.prompt_id: grade for grade in found.grades}, pd.read_parquet(file)


def test_a_verdict_is_found_in_an_answer_that_says_more(graded):
    grades, _ = graded
    assert [grades[f"sum/{n}"].accuracy for n in range(4)] == [100, 100, 100, None]


def test_exact_match_wants_all_of_a_reference_but_for_case_and_punctuation(graded):
    grades, _ = graded
    assert [grades[f"sum/{n}"].exact_match for n in range(4)] == [0, 100, 0, None]


def test_rouge_l_is_of_the_best_reference_and_of_nothing_without_one(graded):
    grades, _ = graded
    # "so the answer is 12": one of five words is the reference's one: P = 1/5, R = 1, F = 1/3.
    assert grades["sum/0"].rouge_l == pytest.approx(100 / 3)
    assert grades["sum/1"].rouge_l == pytest.approx(100)
    assert grades["sum/3"].rouge_l is None


def test_length_end_and_repetition_are_counted(graded):
    grades, _ = graded
    assert [grades[f"sum/{n}"].tokens for n in range(4)] == [7, 1, 8, 2]
    assert [grades[f"sum/{n}"].finished for n in range(4)] == [True, False, False, True]
    # Of the five 4-grams of "the answer is 12 the answer is 12" the last is the first again.
    assert (grades["sum/2"].repeated_grams, grades["sum/2"].grams) == (1, 5)


def test_every_answer_is_kept_with_its_scores(graded):
    _, kept = graded
    assert kept["answer"].tolist()[:2] == ["so the answer is 12 .", "7"]
    assert kept["prompt"].tolist() == ["5 + 7?", "", "", ""]
    assert [list(one) for one in kept["references"]] == [["12"], ["12", "7."], ["12"], []]
    assert kept["accuracy"].tolist()[:3] == [100, 100, 100]
    assert kept["answer_ids"].iloc[2].tolist() == [2, 3, 4, 5, 2, 3, 4, 5]
    assert set(kept["seed"]) == {10}

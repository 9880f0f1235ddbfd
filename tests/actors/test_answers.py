"""What is read off answers: the right one, its length, its variety."""

from __future__ import annotations

import pytest
from minillm_ray.actors.evaluation.extraction import RULES, is_right
from minillm_ray.actors.evaluation.health import distinct_n, repetition, words_as_ids
from minillm_ray.deploy.evaluation.buckets import LENGTH_BUCKETS, length_bucket, num_words


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2 and 3 make 5", "5"),
        ("so it costs $1,234.50.", "1234.5"),
        ("#### 42", "42"),
        ("it is -7", "-7"),
        ("5.0 kg", "5"),
        ("3-4", "4"),
        ("about .5", "0.5"),
        ("100 or 0", "0"),
        ("1,2,3", "3"),
        ("version v2.1 has none", None),
        ("none", None),
    ],
)
def test_the_last_number_counts_whatever_its_writing(text: str, number: str | None):
    assert RULES["last_number"](text) == number


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("C. Paris", "C"),
        ("A dog is an animal. The answer is D.", "D"),
        ("(A) is wrong, so (C)", "C"),
        ("Answer: **B**", "B"),
        ("the option is b", None),
        ("A dog", None),
        ("Because of this,\nB) it rains", "B"),
    ],
)
def test_an_option_is_what_the_text_settles_on(text: str, letter: str | None):
    assert RULES["option_letter"](text) == letter


def test_an_answer_is_right_if_it_settles_on_what_a_reference_says():
    assert is_right("it is 1,000", ["#### 999", "#### 1000"], "last_number")
    assert not is_right("no idea", ["none at all"], "last_number")
    assert is_right(" Paris! ", ["paris"], "exact")
    assert not is_right("in Paris", ["Paris"], "exact")


def test_every_length_has_one_bucket():
    assert list(LENGTH_BUCKETS) == ["[0,5]", "[6,10]", "[11,inf)"]
    assert [length_bucket(n) for n in (0, 5, 6, 10, 11, 999)] == [
        *("[0,5]", "[0,5]"), *("[6,10]", "[6,10]"), *("[11,inf)", "[11,inf)"),
    ]  # fmt: skip
    assert num_words(" two\n words ") == 2


def test_distinct_4_counts_word_sequences_over_all_answers_and_repetition_within_each():
    ids = words_as_ids(["a b c d", "A B C D e", "x x x x x"])
    assert distinct_n(ids) == (3, 5)
    assert repetition(ids) == (1, 5)

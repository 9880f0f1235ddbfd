import pytest
from hypothesis import given
from hypothesis import strategies as st
from minillm_ray.actors.evaluation.text_scores import exact_match, rouge_l
from rouge_score import rouge_scorer

WORDS = st.lists(st.sampled_from(["run", "running", "cat", "sat", "mat", "the"]), min_size=1, max_size=8)


@given(WORDS, WORDS)
def test_rouge_l_is_that_of_the_library_called_by_hand(answer, reference):
    by_hand = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True).score(
        " ".join(reference), " ".join(answer)
    )
    assert rouge_l(" ".join(answer), [" ".join(reference)]) == pytest.approx(100 * by_hand["rougeL"].fmeasure)


def test_the_best_reference_counts():
    assert rouge_l("the cat sat", ["a dog", "the cat sat"]) == 100
    assert rouge_l("the cat sat", ["a dog"]) == 0


def test_exact_match_forgives_case_punctuation_and_spaces_only():
    assert exact_match("The  cat, sat.", ["the cat sat"]) == 100
    assert exact_match("the cats sat", ["the cat sat"]) == 0

import pytest
from minillm_ray.actors.text_sink import AnswerScore
from minillm_ray.deploy.training.measurement import Measurement


def score(prompt: str, sample: int, tokens: int, rouge: float | None) -> AnswerScore:
    return AnswerScore(
        prompt_id=prompt, sample=sample, rouge_l=rouge, exact_match=rouge, accuracy=None, tokens=tokens,
        finished=True, repeated_grams=0.0, grams=1.0,
    )  # fmt: skip


def test_reverse_kl_is_per_token_and_rouge_per_answer():
    scores = [score("a", 0, 2, 100.0), score("a", 1, 6, 0.0)]
    measured = Measurement.of(scores, {("a", 0): 4.0, ("a", 1): 4.0}, ["yes"])
    kl, rouge = measured.reverse_kl(), measured.rouge_l()
    assert kl is not None
    assert kl.mean == pytest.approx(1.0)
    assert rouge is not None
    assert rouge.mean == pytest.approx(50.0)


def test_what_was_not_measured_is_left_out_of_the_values():
    measured = Measurement.of([score("a", 0, 2, None)], None, [])
    assert measured.rouge_l() is None
    assert measured.reverse_kl() is None
    assert set(measured.values()) == {"validation/answer_tokens", "validation/eos_rate"}


def test_a_measurement_comes_back_from_json():
    measured = Measurement.of([score("a", 0, 2, 50.0)], {("a", 0): 1.5}, ["yes"])
    assert Measurement.from_json(measured.to_json()) == measured

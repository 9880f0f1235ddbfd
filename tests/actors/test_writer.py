from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from minillm_ray.actors.text_sink import Writer
from minillm_ray.common.types import FinishReason, Rollout, Scored, WeightVersion

WORDS = ["<eos>", "the", "cat", "sat", "mat"]


class WordTokenizer:
    """Ids are places in WORDS; anything else is refused."""

    def decode(self, token_ids, *, skip_special_tokens):
        return " ".join(WORDS[i] for i in token_ids if not (skip_special_tokens and i == 0))


def rollout(answer: list[int], sample: int = 0, finish: FinishReason = "stop") -> Rollout:
    size = len(answer)
    return Rollout(
        prompt_id="train/1",
        prompt_ids=np.array([1, 2], np.int32),
        answer_ids=np.array(answer, np.int32),
        sample=sample,
        behaviour_logprobs=np.full(size, -1.0, np.float32),
        student_logprobs=np.full(size, -1.5, np.float32),
        mixed_teacher_logprobs=None,
        oldest=WeightVersion(3),
        newest=WeightVersion(3),
        finish=finish,
    )


def scored(passage: Rollout) -> Scored:
    logprobs = np.full(len(passage.answer_ids), -0.5, np.float32)
    return Scored(passage=passage, teacher_logprobs=logprobs, plain_teacher_logprobs=logprobs, hidden=None)


def test_a_set_can_be_read_with_pandas_and_loses_nothing(tmp_path):
    first, second = rollout([3, 4, 0]), rollout([2, 2], sample=1, finish="length")
    Writer(WordTokenizer(), tmp_path).write(7, [scored(first), scored(second)], version=3)
    table = pd.read_parquet(tmp_path / "set-00007.parquet")
    assert list(table["answer"]) == ["sat mat", "cat cat"]
    assert list(table["finish"]) == ["stop", "length"]
    assert list(table["newest"]) == [3, 3]
    np.testing.assert_array_equal(table["answer_ids"][0], first.answer_ids)
    np.testing.assert_allclose(
        table["weights"][1], np.exp(second.student_logprobs - second.behaviour_logprobs)
    )
    np.testing.assert_allclose(table["teacher_logprobs"][0], np.full(3, -0.5))


def test_health_signals_are_counts_over_the_whole_set(tmp_path):
    metrics = Writer(WordTokenizer(), tmp_path).write(
        0,
        [scored(rollout([1, 2, 3, 4, 1, 2, 3, 4])), scored(rollout([1, 2, 3, 4], finish="length"))],
        version=5,
    )
    assert metrics["rollout/weight_age"] == (4, 2)  # both were drawn by version 3
    assert metrics["rollout/answer_tokens"] == (12, 2)
    assert metrics["rollout/eos_rate"] == (1, 2)
    assert metrics["rollout/distinct_4"] == (4, 6)
    assert metrics["rollout/repetition"] == (1, 6)
    assert metrics["rollout/weight_p50"][0] == pytest.approx(np.exp(-0.5))
    assert metrics["rollout/sampled_kl"][0] / 12 == pytest.approx(-1.0)


def test_what_the_teacher_was_not_asked_is_empty_and_no_metric(tmp_path):
    unasked = replace(scored(rollout([3, 4, 0])), teacher_logprobs=None, plain_teacher_logprobs=None)
    metrics = Writer(WordTokenizer(), tmp_path).write(0, [unasked], version=3)
    assert pd.read_parquet(tmp_path / "set-00000.parquet")["teacher_logprobs"][0] is None
    assert "rollout/sampled_kl" not in metrics
    assert metrics["rollout/answer_tokens"] == (3, 1)


def test_answers_without_references_have_no_text_score(tmp_path):
    writer = Writer(WordTokenizer(), tmp_path)
    [with_reference] = writer.score([rollout([3, 0])], {"train/1": ("sat",)})
    [without] = writer.score([rollout([3, 0])], {})
    assert (with_reference.rouge_l, with_reference.exact_match) == (100, 100)
    assert (without.rouge_l, without.exact_match) == (None, None)

"""Answers are kept in whole parts, and joined in the order of the questions without those that were cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from minillm_ray.actors.answer_files import answered, join
from minillm_ray.actors.text_sink import TextSink
from minillm_ray.tests.actors.words import rollout, word_tokenizer

SINK = TextSink(word_tokenizer("the", "cat\u2028sat", "mat"))


def asked(*numbers: int) -> dict[str, dict[str, Any]]:
    return {f"train/{n}": {"instruction": f"ask {n}", "input": ""} for n in numbers}


@pytest.fixture
def written(tmp_path):
    """Answers to questions 0, 1 and 3, the later part first; question 2 is not answered yet."""
    SINK.write_part(tmp_path, 3, asked(3), [rollout([0], "train/3")])
    cut = rollout([1, 1], "train/0", sample=1, finish="length")
    answers = [rollout([2, 0], "train/0"), cut, rollout([1, 3, 0], "train/1")]
    assert SINK.write_part(tmp_path, 0, asked(0, 1), answers) == 3
    (tmp_path / "parts" / "part-0000002-0000002.jsonl.partial").write_text("{")
    return tmp_path


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "answers.jsonl").open()]


def test_what_was_begun_and_not_finished_does_not_count_as_answered(written):
    assert answered(written) == {0, 1, 3}
    assert answered(written / "elsewhere") == set()


def test_answers_are_joined_in_the_order_of_the_questions_whatever_was_written_first(written):
    joined = join(written, keep_cut=False)
    assert [(row["prompt_id"], row["sample"]) for row in rows(written)] == [
        ("train/0", 0),
        ("train/1", 0),
        ("train/3", 0),
    ]
    assert rows(written)[0] == {
        "instruction": "ask 0", "input": "", "output": "cat\u2028sat",
        "prompt_id": "train/0", "sample": 0, "tokens": 2, "finish": "stop",
    }  # fmt: skip
    assert (joined.answers, joined.tokens, joined.cut, joined.empty, joined.written) == (4, 8, 1, 1, 3)


def test_cut_answers_are_kept_only_if_asked_for(written):
    assert join(written, keep_cut=True).written == 4
    assert [row["finish"] for row in rows(written)] == ["stop", "length", "stop", "stop"]


def test_an_answer_to_a_chat_is_its_last_turn(tmp_path):
    turns = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    SINK.write_part(tmp_path, 0, {"train/0": {"messages": turns}}, [rollout([1, 0], "train/0")])
    join(tmp_path, keep_cut=False)
    assert rows(tmp_path)[0]["messages"] == [*turns, {"role": "assistant", "content": "the"}]

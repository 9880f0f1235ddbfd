"""Records become prompts, given answers and blocks of text; what cannot be used is named, never cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from minillm_ray.common.config.run import RunConfig
from minillm_ray.common.errors import DataError
from minillm_ray.common.types import Passage, Prompt
from minillm_ray.deploy.data.readers import read_rows
from minillm_ray.deploy.data.streams import PromptStream
from minillm_ray.deploy.data.tokenize import Blocks, Kept, Limit, TokenizedData, load_blocks, tokenize_rows
from minillm_ray.tests.tiny_models import tiny_tokenizer

EOS = 1
ROWS = [
    {"instruction": "Name a fruit.", "input": "", "output": "Pear"},
    {"instruction": "Add.", "input": "1 and 2", "output": ["3", "three"]},
    {"instruction": "Say nothing.", "input": None, "output": ""},
]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def write(folder: Path, rows: list[dict[str, Any]], name: str = "data.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def config(path: str, text: dict[str, Any] | None = None, **data: Any) -> RunConfig:
    train = {"path": path} | data.pop("train", {})
    rollout = {"max_new_tokens": data.pop("max_new_tokens", 64)}
    return RunConfig.model_validate(
        {
            "student": {"path": "nowhere"},
            "data": {"template": "plain", "train": train} | data,
            "rollout": rollout,
            "text": text,
        }
    )


def tokenized(config: RunConfig, tokenizer: Any) -> TokenizedData:
    """data.train of a run."""
    assert config.data.train is not None
    return tokenize_rows(read_rows(config.data.train, "data.train"), "train", config.prompts, tokenizer)


def prompts_of(config: RunConfig, tokenizer: Any) -> Kept[Prompt]:
    return tokenized(config, tokenizer).prompts()


def passages_of(config: RunConfig, tokenizer: Any) -> Kept[Passage]:
    limit = Limit("rollout.max_new_tokens", config.rollout.max_new_tokens)
    return tokenized(config, tokenizer).passages(limit)


def blocks_of(config: RunConfig, tokenizer: Any) -> Blocks:
    assert config.text is not None
    return load_blocks(config.text, tokenizer)


def test_prompts_carry_their_row_their_question_and_all_right_answers(tmp_path, tokenizer):
    prompts = prompts_of(config(write(tmp_path, ROWS)), tokenizer)
    assert [p.id for p in prompts] == ["train/0", "train/1", "train/2"]
    assert [p.text for p in prompts] == ["Name a fruit.", "Add.\n1 and 2", "Say nothing."]
    assert [p.references for p in prompts] == [("Pear",), ("3", "three"), ()]
    assert tokenizer.decode(prompts[1].token_ids) == "Add.\n1 and 2"
    assert prompts[0].token_ids.dtype == np.int32


def test_the_alpaca_template_is_the_paper_s(tmp_path, tokenizer):
    prompts = prompts_of(config(write(tmp_path, ROWS), template="alpaca", max_prompt_tokens=512), tokenizer)
    assert tokenizer.decode(prompts[1].token_ids).endswith("### Input:\n1 and 2\n\n### Response:\n")


def test_the_templates_prompts_equal_those_published_with_the_development_split(shared_folder, tokenizer):
    path = shared_folder / "data" / "dolly" / "dev.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:40]]
    asked = config(str(path), template="alpaca", max_prompt_tokens=10000, train={"limit": 40})
    prompts = prompts_of(asked, tokenizer)
    published = [row["prompt"] for row in rows]
    ours = [tokenizer.decode(prompt.token_ids) for prompt in prompts]
    ascii_rows = [n for n, text in enumerate(published) if text.isascii()]
    assert len(ascii_rows) > 20
    assert [ours[n].strip() for n in ascii_rows] == [published[n].strip() for n in ascii_rows]


def test_columns_may_have_any_names_and_parquet_is_read(tmp_path, tokenizer):
    import pandas as pd

    path = tmp_path / "data.parquet"
    pd.DataFrame({"question": ["Two?", "Three?"], "answer": ["2", "3"]}).to_parquet(path)
    columns = {"instruction": "question", "output": "answer", "input": None}
    prompts = prompts_of(config(str(path), train=columns), tokenizer)
    assert [(p.text, p.references) for p in prompts] == [("Two?", ("2",)), ("Three?", ("3",))]


def test_a_chat_is_rendered_by_the_tokenizers_template_with_its_last_answer_as_reference(tmp_path, tokenizer):
    chat = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "Farewell"},
    ]
    rows = [{"chat": chat}, {"chat": [{"role": "system", "content": "own"}, chat[0]]}]
    asked = config(
        write(tmp_path, rows), template="chat", system_prompt="Be kind.", train={"messages": "chat"}
    )
    prompts = prompts_of(asked, tokenizer)
    assert tokenizer.decode(prompts[0].token_ids) == "S: Be kind.\nQ: Hi\nA: Hello\nQ: Bye\nA:"
    assert prompts[0].references == ("Farewell",)
    assert prompts[0].text == "Bye"
    assert tokenizer.decode(prompts[1].token_ids) == "S: own\nQ: Hi\nA:"
    assert prompts[1].references == ()


def test_columns_too_are_put_into_the_chat_template(tmp_path, tokenizer):
    prompts = prompts_of(config(write(tmp_path, ROWS), template="chat"), tokenizer)
    assert tokenizer.decode(prompts[1].token_ids) == "Q: Add.\n1 and 2\nA:"


def test_a_prompt_that_is_too_long_is_dropped_with_a_message_and_none_is_cut(tmp_path, tokenizer):
    rows = [{"instruction": "x" * n, "output": "y"} for n in (5, 11, 10)]
    prompts = prompts_of(config(write(tmp_path, rows), max_prompt_tokens=10), tokenizer)
    assert [(p.id, len(p.token_ids)) for p in prompts] == [("train/0", 5), ("train/2", 10)]
    (drop,) = prompts.dropped
    assert (drop.prompt_id, drop.stage, drop.reason) == ("train/1", "prompts", "prompt_too_long")
    assert drop.detail == "11 tokens > data.max_prompt_tokens = 10"


def test_if_all_prompts_are_too_long_the_limit_is_named(tmp_path, tokenizer):
    with pytest.raises(DataError, match=r"none of 3 records .*data\.max_prompt_tokens = 2.*raise the limit"):
        prompts_of(config(write(tmp_path, ROWS), max_prompt_tokens=2), tokenizer)


def test_a_given_answer_ends_with_the_end_token_behind_the_prompt_s_tokens(tmp_path, tokenizer):
    asked = config(write(tmp_path, ROWS))
    passages = passages_of(asked, tokenizer)
    prompts = prompts_of(asked, tokenizer)
    assert [p.prompt_id for p in passages] == ["train/0", "train/1"]
    np.testing.assert_array_equal(passages[1].prompt_ids, prompts[1].token_ids)
    assert tokenizer.decode(passages[1].answer_ids[:-1]) == "3"
    assert [p.answer_ids[-1] for p in passages] == [EOS, EOS]
    assert passages[0].answer_ids.dtype == np.int32
    assert [(d.prompt_id, d.reason) for d in passages.dropped] == [("train/2", "no_answer")]


def test_an_answer_that_is_too_long_with_its_end_token_is_dropped(tmp_path, tokenizer):
    rows = [{"instruction": "a", "output": "b" * n} for n in (7, 8)]
    passages = passages_of(config(write(tmp_path, rows), max_new_tokens=8), tokenizer)
    assert [len(p.answer_ids) for p in passages] == [8]
    assert passages.dropped[0].detail == "9 tokens > rollout.max_new_tokens = 8"


@pytest.mark.parametrize(
    ("rows", "data", "says"),
    [
        (
            [{"question": "a"}],
            {},
            r"\.instruction = instruction: .* has no such column; it has question",
        ),
        (ROWS, {"train": {"output": "outputs"}}, r"data\.train\.output = outputs: .*did you mean output\?"),
        (
            [{"instruction": " "}],
            {},
            r"data\.train\.instruction = instruction: line 1 of data.jsonl holds ' '",
        ),
        (
            [{"instruction": "a", "output": 5}],
            {},
            r"data\.train\.output = output: line 1 of data.jsonl holds 5",
        ),
        (
            [{"chat": []}],
            {"template": "chat", "train": {"messages": "chat"}},
            r"line 1 of data.jsonl has no user turn",
        ),
        (
            [{"chat": "a"}],
            {"template": "chat", "train": {"messages": "chat"}},
            r"line 1 of data.jsonl has the chat as text that is no JSON",
        ),
    ],
)
def test_a_record_that_cannot_be_used_is_named_with_the_way_out(tmp_path, tokenizer, rows, data, says):
    with pytest.raises(DataError, match=says):
        prompts_of(config(write(tmp_path, rows), **data), tokenizer)


def test_a_data_set_may_lack_the_default_columns_for_input_and_output(tmp_path, tokenizer):
    prompts = prompts_of(config(write(tmp_path, [{"instruction": "a"}])), tokenizer)
    assert prompts[0].references == ()


def test_empty_broken_and_missing_files_are_data_errors(tmp_path, tokenizer):
    cases = {"empty.jsonl": "", "blank.jsonl": "\n", "broken.jsonl": '{"instruction": "a"}\n{no\n'}
    for name, content in cases.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=rf"data\.train\.path = .*{name}"):
            prompts_of(config(str(tmp_path / name)), tokenizer)
    with pytest.raises(DataError, match=r"is a file that does not exist; beside it are empty\.jsonl"):
        prompts_of(config(str(tmp_path / "emty.jsonl")), tokenizer)


def test_a_data_set_that_the_hub_does_not_give_is_a_data_error(tokenizer):
    with pytest.raises(DataError, match=r"data\.train\.path = nobody/nothing cannot be read"):
        prompts_of(config("nobody/nothing"), tokenizer)


def test_a_tokenizer_without_chat_template_or_end_token_is_refused(tmp_path):
    bare = tiny_tokenizer()
    bare.chat_template = None
    with pytest.raises(DataError, match=r"data\.template = chat .* has none; set data\.template=alpaca"):
        prompts_of(config(write(tmp_path, ROWS), template="chat"), bare)
    bare.eos_token = None
    with pytest.raises(DataError, match="no end-of-sequence token"):
        passages_of(config(write(tmp_path, ROWS)), bare)


def test_documents_are_joined_by_the_end_token_and_cut_into_blocks(tmp_path, tokenizer):
    rows = [{"text": "abcde"}, {"text": ""}, {"text": "fgh"}, {"text": "ij"}]
    asked = config("unused", text={"path": write(tmp_path, rows), "block_tokens": 4})
    blocks = blocks_of(asked, tokenizer)
    assert len(blocks) == 3
    joined = np.concatenate([np.concatenate([b.prompt_ids, b.answer_ids]) for b in blocks])
    words = ["abcde", "fgh", "ij"]
    expected = [id for word in words for id in [*tokenizer.convert_tokens_to_ids(list(word)), EOS]]
    assert joined.tolist() == expected[:12]
    assert {len(b.prompt_ids) for b in blocks} == {1}
    assert [b.prompt_id for b in blocks] == ["text/0", "text/1", "text/2"]


def test_blocks_come_from_a_stream_one_can_come_back_to(tmp_path, tokenizer):
    (tmp_path / "corpus.txt").write_text("abcdefghijklmnopqrst" * 3, encoding="utf-8")
    text = {"path": str(tmp_path / "corpus.txt"), "block_tokens": 5}
    blocks = blocks_of(config("unused", text=text), tokenizer)
    stream, other = PromptStream(blocks, seed=4), PromptStream(blocks, seed=4)
    stream.take(7)
    other.move_to(stream.state())
    assert [b.prompt_id for b in stream.take(9)] == [b.prompt_id for b in other.take(9)]


def test_text_that_fills_no_block_is_a_data_error(tmp_path, tokenizer):
    (tmp_path / "corpus.txt").write_text("short", encoding="utf-8")
    with pytest.raises(DataError, match=r"6 tokens do not fill one block of text\.block_tokens = 128"):
        blocks_of(config("unused", text={"path": str(tmp_path / "corpus.txt")}), tokenizer)

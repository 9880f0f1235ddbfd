"""A tokenizer and a model made from text fit each other and our templates; what cannot be is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from minillm_ray.common.config.run import ModelConfig, RunConfig
from minillm_ray.common.errors import ConfigError, DataError
from minillm_ray.deploy.data.readers import read_rows
from minillm_ray.deploy.data.tokenize import Limit, load_blocks, tokenize_rows
from minillm_ray.deploy.models.inspect import compare_tokenizers, describe_model, load_tokenizer
from minillm_ray.deploy.models.pretrain import SPECIAL, Shape, make_model, plan, train_tokenizer

TEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 50


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model of 300 words, made from TEXT."""
    path = tmp_path_factory.mktemp("tiny") / "start"
    make_model(Shape(layers=1, width=64), train_tokenizer([TEXT], 300), path, seed=3)
    return path


def config(folder: Path, **changes) -> RunConfig:
    settings = {"student": {"path": str(folder)}, "objective": {"kind": "sft"}, **changes}
    return RunConfig.model_validate(settings)


def test_the_folder_is_a_model_that_a_run_can_use(folder):
    facts = describe_model(ModelConfig(path=str(folder)), "student")
    assert (facts.family, facts.vocabulary, facts.head_dim, facts.tied) == ("llama", 300, 32, True)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == SPECIAL.index("<|endoftext|>")


def test_every_text_comes_back_from_its_tokens(folder):
    words = load_tokenizer(ModelConfig(path=str(folder)), "student")
    for text in (TEXT, " À l'été\n\n\t你好 🙂", "<|user|>"):
        assert words.decode(words(text)["input_ids"]) == text
    assert len(words("The quick brown fox")["input_ids"]) < 19


@pytest.mark.parametrize("template", ["chat", "alpaca", "plain"])
def test_our_templates_work_and_prompts_end_where_answers_begin(folder, tmp_path, template):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"instruction": "jump", "output": "over"}) + "\n")
    data = {"train": {"path": str(tmp_path / "rows.jsonl")}, "template": template}
    run = config(folder, data=data)
    assert run.data.train is not None
    words = load_tokenizer(run.student, "student.path")
    rows = read_rows(run.data.train, "data.train")
    (passage,) = tokenize_rows(rows, "train", run.prompts, words).passages(Limit("rollout.max_new_tokens", 9))
    prompt = str(words.decode(passage.prompt_ids.tolist()))
    assert words.decode(passage.answer_ids.tolist()) == "over<|endoftext|>"
    ends = {"chat": "<|endoftext|><|user|>jump<|assistant|>", "alpaca": "### Response:\n", "plain": "jump"}
    assert prompt.endswith(ends[template])


def test_a_second_model_can_be_made_with_the_same_tokenizer(folder, tmp_path):
    words = load_tokenizer(ModelConfig(path=str(folder)), "--tokenizer")
    make_model(Shape(layers=2, width=96), words, tmp_path / "other", seed=0)
    compare_tokenizers(words, load_tokenizer(ModelConfig(path=str(tmp_path / "other")), "teacher"), 300)


def test_impossible_sizes_and_settings_are_told_at_once(tmp_path):
    with pytest.raises(ConfigError) as found:
        plan([tmp_path / "a.txt"], tmp_path / "out", 10, ["learner.rank=2"], Shape(width=100, vocabulary=20))
    assert [fault.key for fault in found.value.faults] == ["--vocabulary", "--width", "learner.rank"]


def test_overrides_win_and_what_depends_on_them_follows(tmp_path):
    made = plan(
        [tmp_path / "a.txt"], tmp_path, 40, ["learner.batch_size=48", "text.block_tokens=32"], Shape()
    )
    assert (made.rollout.rollout_batch_size, made.learner.max_steps, made.learner.optimizer.warmup_steps) == (
        384,
        40,
        4,
    )
    assert made.text is not None
    assert (made.text.block_tokens, made.text.validation_blocks) == (32, 64)
    assert made.text_alone


def test_blocks_held_out_are_spread_over_the_text_and_not_learned(folder, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    text = {"path": str(tmp_path / "text.txt"), "block_tokens": 8}
    run = config(folder, text=text)
    assert run.text is not None
    blocks = load_blocks(run.text, load_tokenizer(run.student, "student.path"))
    rest, held = blocks.split(4)
    assert [len(rest), len(held)] == [len(blocks) - 4, 4]
    names = [block.prompt_id for block in held]
    assert names[0] == "text/0"
    assert int(names[-1].split("/")[1]) >= 3 * len(blocks) // 4
    assert not set(names) & {block.prompt_id for block in rest}
    np.testing.assert_array_equal(held[1].prompt_ids, blocks[len(blocks) // 4].prompt_ids)
    with pytest.raises(DataError, match=r"text\.validation_blocks = 900 leaves nothing"):
        blocks.split(900)


TEXT_SETTINGS = {"path": "t", "validation_blocks": 3}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "data.train is missing; set data.train.path, or learn from plain text only"),
        ({"objective": {"kind": "kd"}, "teacher": {"path": "t"}, "text": {"path": "t"}}, "data.train is"),
        ({"data": {"train": {"path": "d"}}, "text": TEXT_SETTINGS}, "text.validation_blocks = 3 is for"),
        ({"data": {"validation": {"path": "d"}}, "text": TEXT_SETTINGS}, "text.validation_blocks = 3 and"),
    ],
)
def test_what_is_learned_from_must_be_clear(changes, says):
    (found,) = config(Path("student"), **changes).faults()
    assert str(found).startswith(says)

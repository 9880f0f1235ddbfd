"""All ids that a model's files produce have a row in it; generation settings are read strictly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from minillm_ray.common.config.run import ModelConfig
from minillm_ray.common.errors import ModelError
from minillm_ray.deploy.models.convert import cut_model
from minillm_ray.deploy.models.inspect import describe_model, shared_vocabulary
from minillm_ray.deploy.models.token_ids import unsaved_settings
from minillm_ray.tests.deploy.models.broken_models import copy_of, faults_of, said, with_json, with_text
from minillm_ray.tests.tiny_models import CHAT_TEMPLATE, tiny_model, tiny_tokenizer
from transformers import AutoTokenizer

GENERATION = "generation_config.json"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("models") / "llama")


def with_control_token(model: Path, template: str = CHAT_TEMPLATE, **marks: str) -> Path:
    """A copy whose tokenizer has one control token more than the model has rows."""
    folder = copy_of(model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<picture>"]})
    for name, token in marks.items():
        setattr(tokenizer, name, token)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def test_a_tokenizer_with_more_words_than_the_model_has_rows_is_refused(model):
    folder = copy_of(model)
    tiny_tokenizer(130).save_pretrained(folder)
    assert "produces ids beyond the 128 rows of its model: 128 ('<spare" in said(folder)


def test_a_control_token_without_a_row_may_be_there_as_long_as_nothing_uses_it(model):
    assert faults_of(with_control_token(model)) == ()
    assert "128 ('<picture>')" in said(with_control_token(model, pad_token="<picture>"))
    assert "128 ('<picture>')" in said(with_control_token(model, "<picture>" + CHAT_TEMPLATE))


def test_the_students_words_all_have_rows_in_the_teacher(tmp_path):
    wide, narrow = tiny_model("llama", tmp_path / "wide", vocabulary=140), tiny_model("llama", tmp_path / "m")
    student, teacher = (
        (describe_model(ModelConfig(path=str(path)), "student.path"), AutoTokenizer.from_pretrained(path))
        for path in (wide, narrow)
    )
    with pytest.raises(ModelError, match=rf"beyond the 128 rows of teacher\.path = {narrow}: 128 .* 9 more"):
        shared_vocabulary(student[0], teacher[0], student[1], teacher[1])
    assert shared_vocabulary(teacher[0], student[0], teacher[1], student[1]) == 128


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("eos_token_id", 500, "eos_token_id = 500, and its model has 128 rows"),
        ("eos_token_id", [1, 500], "eos_token_id = 500, and its model has 128 rows"),
        ("forced_eos_token_id", 128, "forced_eos_token_id = 128, and its model has 128 rows"),
        ("eos_token_id", "1", "eos_token_id = '1', which is no id"),
        ("num_return_sequences", 3, "num_return_sequences"),
        ("early_stopping", "foo", "early_stopping"),
    ],
)
def test_generation_settings_that_cannot_be_are_named(model, field: str, value: Any, says: str):
    words = said(with_json(model, GENERATION, **{field: value}))
    assert f"has a {GENERATION} that cannot be used" in words
    assert says in words


def test_ids_of_config_and_generation_settings_are_told_together(model):
    folder = with_json(with_json(model, GENERATION, eos_token_id=500), "config.json", pad_token_id=501)
    told = [str(fault) for fault in faults_of(folder)]
    assert len(told) == 2
    assert "config.json that cannot be used: pad_token_id = 501" in told[0]
    assert f"{GENERATION} that cannot be used: eos_token_id = 500" in told[1]


def test_generation_settings_that_are_no_json_are_refused_and_none_at_all_are_fine(model):
    assert f"{GENERATION} is no JSON" in said(with_text(model, GENERATION, "{"))
    without = copy_of(model)
    (without / GENERATION).unlink()
    assert faults_of(without) == ()


def test_settings_that_transformers_does_not_save_are_named_and_outlive_a_cut(model, tmp_path):
    assert unsaved_settings(ModelConfig(path=str(model))) == []
    folder = with_json(model, GENERATION, temperature=0.6, top_p=0.9)
    assert faults_of(folder) == ()
    assert unsaved_settings(ModelConfig(path=str(folder))) == ["temperature", "top_p"]
    cut = cut_model(folder, 1, tmp_path / "cut")
    kept = json.loads((cut / GENERATION).read_text())
    assert (kept["temperature"], kept["top_p"], kept["eos_token_id"]) == (0.6, 0.9, 1)

"""A broken config.json, generation_config.json or tokenizer is one error that names file and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from minillm_ray.tests.deploy.models.broken_models import copy_of, faults_of, said, with_json, with_text
from minillm_ray.tests.tiny_models import tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("others")
    return {family: tiny_model(family, root / family) for family in ("gpt2", "qwen2")}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", "64"),
        ("num_hidden_layers", 2.5),
        ("vocab_size", -1),
        ("num_attention_heads", True),
        ("max_position_embeddings", "256"),
        ("num_attention_heads", 3),
        ("num_key_value_heads", 7),
        ("rms_norm_eps", "1e-5"),
        ("attention_dropout", "0.1"),
        ("tie_word_embeddings", "false"),
        ("model_type", "lama"),
        ("model_type", 3),
        ("hidden_act", "foo"),
        ("dtype", "float33"),
        ("layer_types", ["foo"]),
        ("rope_parameters", {"rope_type": "foo", "rope_theta": 1e4}),
        ("rope_parameters", {"rope_type": "default", "rope_theta": "10000"}),
        ("pad_token_id", 500),
        ("eos_token_id", [1, 500]),
        ("transformers_weights", "other.safetensors"),
    ],
)
def test_a_field_that_cannot_be_is_named_with_its_file(model, field: str, value: Any):
    words = said(with_json(model, "config.json", **{field: value}))
    assert "has a config.json that cannot be used" in words
    assert field in words.split("cannot be used")[1]


def test_heads_that_do_not_divide_the_width_are_refused_in_every_family(others):
    fields = {"gpt2": ("n_head", "n_embd = 64"), "qwen2": ("num_attention_heads", "hidden_size = 64")}
    for family, (heads, width) in fields.items():
        folder = with_json(others[family], "config.json", **{heads: 3, "num_key_value_heads": 3})
        assert f"{heads} = 3, which does not divide {width}" in said(folder)


def test_all_fields_that_cannot_be_are_told_at_once(model):
    assert len(faults_of(with_json(model, "config.json", hidden_size="64", num_hidden_layers="2"))) == 2


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_config_that_holds_no_fields_is_refused_by_its_name(model, text):
    assert "has a broken file: config.json" in said(with_text(model, "config.json", text))


def test_code_that_comes_with_a_model_is_refused_unless_transformers_knows_the_family(model):
    own = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.Own"}
    assert faults_of(with_json(model, "config.json", auto_map=own)) == ()
    foreign = with_json(model, "config.json", auto_map=own, model_type="own")
    assert "brings code of its own (auto_map in its config.json), which is never run" in said(foreign)


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("model", "vocab", "a"), "3", 'model.vocab["a"] = "3" is no id'),
        (("model", "type"), "Foo", 'model of type "Foo"'),
        (("pre_tokenizer", "type"), "Foo", 'pre_tokenizer of type "Foo"'),
        (("decoder", "type"), "Foo", 'decoder of type "Foo"'),
        (("post_processor",), {"type": "Foo"}, 'post_processor of type "Foo"'),
        (("added_tokens", 0, "id"), "0", "added_tokens"),
    ],
)
def test_a_broken_tokenizer_json_is_one_error_with_its_field(others, family, path, value, says):
    folder = copy_of(others[family])
    values = part = json.loads((folder / "tokenizer.json").read_text())
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    (folder / "tokenizer.json").write_text(json.dumps(values))
    assert f"has no tokenizer that can be read: tokenizer.json: {says}" in said(folder)


def test_files_beside_the_tokenizer_are_named_where_they_are_broken(model):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert f"read: {name} is no JSON" in said(with_text(model, name, "{"))
    assert 'model_max_length = "256"' in said(
        with_json(model, "tokenizer_config.json", model_max_length="256")
    )


def test_a_broken_config_does_not_hide_a_broken_tokenizer(model):
    folder = with_json(model, "config.json", hidden_size="64")
    (folder / "tokenizer.json").write_text("{")
    told = [str(fault) for fault in faults_of(folder)]
    assert len(told) == 2
    assert "hidden_size" in told[0]
    assert "tokenizer.json is no JSON" in told[1]

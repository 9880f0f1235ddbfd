"""The weights of a model are those that its config.json describes, or the model is refused by their names."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from minillm_ray.common.config.run import ModelConfig
from minillm_ray.common.errors import ModelError
from minillm_ray.deploy.models.checkpoint import read_headers, unread_files
from minillm_ray.deploy.models.inspect import describe_model
from minillm_ray.tests.deploy.models.broken_models import (
    WEIGHTS,
    copy_of,
    faults_of,
    said,
    with_json,
    with_tensors,
    with_text,
)
from minillm_ray.tests.tiny_models import tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MixtralConfig

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n"
UP = "model.layers.0.mlp.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tied model."""
    return tiny_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def untied(tmp_path_factory) -> Path:
    return tiny_model("qwen2", tmp_path_factory.mktemp("models") / "qwen2", tied=False)


def test_tensors_that_transformers_renames_or_joins_are_known_by_their_new_names(tmp_path, model):
    def without_prefix(tensors) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    assert faults_of(with_tensors(model, without_prefix)) == ()
    experts = MixtralConfig(
        vocab_size=128, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, num_local_experts=2, max_position_embeddings=64, bos_token_id=None,
    )  # fmt: skip
    folder = copy_of(model)
    AutoModelForCausalLM.from_config(experts).save_pretrained(folder)
    one = "model.layers.0.block_sparse_moe.experts.1.w1.weight"
    assert one in load_file(folder / WEIGHTS)
    describe_model(ModelConfig(path=str(folder)), "student.path")
    lacking = with_tensors(folder, lambda tensors: tensors.pop(one))
    with pytest.raises(ModelError, match=r"model\.layers\.0\.mlp\.experts\.gate_up_proj"):
        describe_model(ModelConfig(path=str(lacking)), "student.path")


def test_missing_unexpected_and_misshaped_tensors_are_all_named_at_once(model):
    def change(tensors) -> None:
        del tensors[UP]
        tensors["model.layers.7.mlp.up_proj.weight"] = torch.ones(2)
        tensors["model.norm.weight"] = torch.ones(2)

    told = [str(fault) for fault in faults_of(with_tensors(model, change))]
    assert len(told) == 3
    assert f"lacks {UP} of the weights that a llama of its config.json has" in told[0]
    assert (
        "holds model.layers.7.mlp.up_proj.weight, which a llama of its config.json does not have" in told[1]
    )
    assert "model.norm.weight as 2 instead of 64" in told[2]


def test_many_tensors_are_named_by_the_first_and_counted(model):
    assert "and 17 more; give config.json and weights" in said(
        with_json(model, "config.json", hidden_size=128)
    )


def test_what_older_versions_saved_beside_the_weights_is_left_out(model, tmp_path):
    gpt2 = tiny_model("gpt2", tmp_path / "gpt2")
    masks = {
        "h.0.attn.bias": torch.ones(1, 1, 8, 8),
        "h.0.attn.masked_bias": torch.tensor(-1e4),
        "transformer.h.1.attn.masked_bias": torch.tensor(-1e4),
    }
    assert faults_of(with_tensors(gpt2, lambda tensors: tensors.update(masks))) == ()
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)}
    assert faults_of(with_tensors(model, lambda tensors: tensors.update(frequencies))) == ()
    bias = {"model.layers.0.mlp.up_proj.bias": torch.ones(128)}
    assert "mlp.up_proj.bias, which" in said(with_tensors(model, lambda tensors: tensors.update(bias)))


def test_a_tied_model_may_bring_its_head_only_if_it_is_the_embedding(model):
    head = load_file(model / WEIGHTS)[EMBEDDING].clone()
    same = with_tensors(model, lambda tensors: tensors.update({"lm_head.weight": head}))
    assert faults_of(same) == ()
    head[-1, -1] += 1  # the last of all, so that all are looked at
    other = with_tensors(model, lambda tensors: tensors.update({"lm_head.weight": head}))
    words = said(other)
    assert f"ties lm_head.weight to {EMBEDDING} in its config.json, and its weights hold both" in words
    assert "set tie_word_embeddings to false" in words
    assert faults_of(with_json(other, "config.json", tie_word_embeddings=False)) == ()


def test_a_tied_head_alone_stands_for_the_embedding_too(model):
    def head_only(tensors) -> None:
        tensors["lm_head.weight"] = tensors.pop(EMBEDDING)

    assert faults_of(with_tensors(model, head_only)) == ()


def test_an_untied_model_without_a_head_is_told_how_to_tie_it(untied):
    words = said(with_tensors(untied, lambda tensors: tensors.pop("lm_head.weight")))
    assert "lacks lm_head.weight" in words
    assert "set tie_word_embeddings to true" in words


def test_the_values_of_weights_are_not_looked_at(tmp_path):
    folder = tiny_model("llama", tmp_path / "model")
    whole = (folder / WEIGHTS).read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    (folder / WEIGHTS).write_bytes(whole[:header] + b"\xff" * (len(whole) - header))
    assert faults_of(folder) == ()


def test_weights_in_other_numbers_are_refused_unless_the_config_says_how_to_read_them(model):
    def quantise(tensors) -> None:
        tensors[UP] = tensors[UP].to(torch.float8_e4m3fn)
        tensors[f"{UP}_scale_inv"] = torch.ones(1, 1)

    folder = with_tensors(model, quantise)
    told = " ".join(map(str, faults_of(folder)))
    assert f"holds {UP} as F8_E4M3, and its config.json does not say how to read them" in told
    fp8 = with_json(folder, "config.json", quantization_config={"quant_method": "fp8"})
    assert 'is quantised (quant_method = "fp8")' in said(fp8)
    assert faults_of(fp8, quantised=True) == ()
    gptq = with_json(model, "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    for allowed in (False, True):
        assert 'is quantised (quant_method = "gptq")' in said(gptq, quantised=allowed)


def test_files_that_git_lfs_has_not_fetched_are_named(model):
    folder = with_text(model, WEIGHTS, POINTER)
    (folder / "tokenizer.json").write_text(POINTER)
    words = said(folder)
    assert f"holds {WEIGHTS}, tokenizer.json as Git LFS pointers" in words
    assert "git lfs pull" in words
    assert "config.json as Git LFS pointers" in said(with_text(model, "config.json", POINTER))
    assert faults_of(with_text(model, "stray.safetensors", POINTER)) == ()


def test_an_adapter_is_refused_with_and_without_a_model_beside_it(model):
    beside = with_text(model, "adapter_config.json", "{}")
    alone = with_text(model, "adapter_config.json", "{}")
    (alone / "config.json").unlink()
    (alone / WEIGHTS).rename(alone / "adapter_model.safetensors")
    for folder in (beside, alone):
        assert "merge it into its base model" in str(faults_of(folder)[0])


def test_weights_of_another_name_are_refused_and_beside_the_right_ones_noted(model):
    folder = copy_of(model)
    stray = folder / "pytorch_model.safetensors"
    save_file({"model.norm.weight": torch.zeros(3)}, stray)
    assert faults_of(folder) == ()
    assert unread_files(ModelConfig(path=str(folder))) == [stray.name]
    (folder / WEIGHTS).unlink()
    assert f"holds {stray.name}, and only {WEIGHTS}" in said(folder)


def test_a_file_that_is_cut_short_is_refused(model):
    folder = copy_of(model)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])
    assert f"has weights that cannot be read: {WEIGHTS}" in said(folder)


def test_an_index_must_lead_to_files_that_hold_each_tensor_once(model):
    folder = copy_of(model)
    index = folder / "model.safetensors.index.json"
    (folder / WEIGHTS).rename(folder / "model-1.safetensors")
    weight_map = {UP: "model-1.safetensors"}
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert faults_of(folder) == ()
    weight_map[EMBEDDING] = "model-2.safetensors"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert f"lacks model-2.safetensors, which {index.name} names" in said(folder)
    save_file({UP: torch.zeros(128, 64)}, folder / "model-2.safetensors")
    assert f"has {UP} twice, in model-1.safetensors and in model-2.safetensors" in said(folder)
    index.write_text("{")
    assert f"has an index that cannot be used: {index.name} is no JSON" in said(folder)


def test_of_a_model_on_the_hub_only_headers_are_fetched(model, monkeypatch):
    import huggingface_hub as hub

    told = {
        name: SimpleNamespace(shape=list(tensor.shape), dtype="F32")
        for name, tensor in load_file(model / WEIGHTS).items()
    }
    asked = []

    def parse(repo: str, file: str, *, revision: str | None):
        asked.append((repo, file, revision))
        return SimpleNamespace(tensors=told)

    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(
        hub, "list_repo_files", lambda *_, **__: ["config.json", WEIGHTS, "stray.safetensors"]
    )
    monkeypatch.setattr(hub, "parse_safetensors_file_metadata", parse)
    there = ModelConfig(path="someone/small", revision="v1")
    here = read_headers(ModelConfig(path=str(model)), "student.path")
    assert read_headers(there, "student.path") == here
    assert asked == [("someone/small", WEIGHTS, "v1")]

    def no_network(*_: Any, **__: Any):
        raise hub.errors.HfHubHTTPError.__bases__[0]("no such host")

    monkeypatch.setattr(hub, "list_repo_files", no_network)
    assert read_headers(there, "student.path") is None
    monkeypatch.setattr(hub, "list_repo_files", lambda *_, **__: ["config.json", "pytorch_model.bin"])
    with pytest.raises(ModelError, match=r"only as pytorch_model\.bin, a pickle"):
        read_headers(there, "student.path")

"""vLLM reads the weights that transformers reads, and nothing that lies beside them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from minillm_ray.actors.checkpoint_files import INDEX, WHOLE, weight_files
from minillm_ray.common.errors import ModelError
from minillm_ray.common.types import SamplingSpec
from minillm_ray.tests.actors.engines import Pair, reference, reference_logits, some_prompts
from minillm_ray.tests.tiny_models import tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM


def cut_in_two(folder: Path) -> None:
    """The weights of a folder as two files and an index."""
    tensors = load_file(folder / WHOLE)
    names = sorted(tensors)
    parts = {"model-1-of-2.safetensors": names[::2], "model-2-of-2.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
    files = {name: file for file, part in parts.items() for name in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    (folder / WHOLE).unlink()


def with_stray_files(folder: Path) -> Path:
    """The same folder with other weights of the same names in it, before and behind those that count."""
    tensors = {name: torch.zeros_like(tensor) for name, tensor in load_file(folder / WHOLE).items()}
    for name in ("a.safetensors", "pytorch_model.safetensors"):
        save_file(tensors, folder / name, metadata={"format": "pt"})
    return folder


@pytest.mark.vllm
def test_an_engine_reads_no_file_but_those_that_the_standard_name_or_the_index_gives(engines, tmp_path):
    # Brackets mean something in the pattern of a name.
    student = with_stray_files(tiny_model("llama", tmp_path / "student[1]", seed=1))
    teacher = with_stray_files(tiny_model("llama", tmp_path / "teacher", seed=2, width=96, tied=False))
    cut_in_two(teacher)
    pair = Pair(student, teacher)
    spec = SamplingSpec(max_tokens=8, teacher_mix=0.5, samples=1, seed=3)
    prompts = some_prompts()
    models = reference(student), reference(teacher)
    for prompt, answer in zip(prompts, engines.use(pair).call("generate", prompts, spec), strict=True):
        ids = torch.from_numpy(answer.answer_ids).long()[:, None]
        for model, found in zip(
            models, (answer.student_logprobs, answer.mixed_teacher_logprobs), strict=True
        ):
            logits = reference_logits(model, prompt.token_ids, answer.answer_ids)
            want = logits.log_softmax(-1).gather(-1, ids)[:, 0].numpy()
            np.testing.assert_allclose(found, want, atol=1e-4)


def test_the_standard_name_comes_before_an_index_here_and_in_transformers(tmp_path):
    folder = tiny_model("llama", tmp_path / "model", seed=1)
    whole = Path(shutil.copy(folder / WHOLE, tmp_path))
    cut_in_two(tiny_model("llama", tmp_path / "other", seed=2))
    for file in (tmp_path / "other").glob("model*"):
        shutil.copy(file, folder)
    assert weight_files(folder) == [folder / WHOLE]
    loaded = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
    name = "model.norm.weight"
    assert torch.equal(loaded.state_dict()[name], load_file(whole)[name])
    (folder / WHOLE).unlink()
    assert [file.name for file in weight_files(folder)] == [
        "model-1-of-2.safetensors",
        "model-2-of-2.safetensors",
    ]


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ("{", "is no JSON"),
        ("[]", "has no weight_map"),
        ('{"weight_map": {"a": "b.safetensors"}}', "has no metadata"),
        ('{"metadata": {}, "weight_map": {"a": "../b.safetensors"}}', "no safetensors file beside it"),
        ('{"metadata": {}, "weight_map": {"a": "b.bin"}}', "no safetensors file beside it"),
    ],
)
def test_an_index_that_leads_to_no_files_of_the_folder_is_refused(tmp_path, index, says):
    with pytest.raises(ModelError, match=f"neither {WHOLE} nor"):
        weight_files(tmp_path)
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(ModelError, match=says):
        weight_files(tmp_path)

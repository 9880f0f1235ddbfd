"""What student and teacher are to each other is said before a run: refused, or worth a note."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import ray
from minillm_ray.common.errors import ModelError
from minillm_ray.deploy.preflight.check import check_run
from minillm_ray.tests.deploy.preflight.test_check import settings, with_ends
from minillm_ray.tests.tiny_models import tiny_model
from transformers import AutoTokenizer


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "ray://somewhere:10001")  # whose machines are not known here


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {
        "teacher": str(tiny_model("qwen2", root / "teacher", width=96, padding=16, tied=False)),
        "student": str(tiny_model("qwen2", root / "student", padding=8)),
    }


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    path.write_text(
        "".join(json.dumps({"instruction": f"say {n}", "output": "a"}) + "\n" for n in range(300))
    )
    return str(path)


def test_an_end_without_a_row_is_refused_in_both_models(models, questions, tmp_path):
    for name in ("student", "teacher"):
        odd = with_ends(models[name], tmp_path / name, [1, 500])
        with pytest.raises(ModelError, match=rf"{name}\.path = .* eos_token_id = 500, and its model has"):
            check_run(settings(models, questions, **{name: {"path": odd}}))


def test_a_teacher_that_ends_with_tokens_of_its_own_is_noted(models, questions, tmp_path):
    chatty = with_ends(models["teacher"], tmp_path / "chatty", [1, 77])
    (note,) = check_run(settings(models, questions, teacher={"path": chatty})).notes
    assert "ends an answer with token 77, and the student's end only with 1" in note


def test_settings_that_are_not_saved_and_files_that_are_not_read_are_noted(models, questions, tmp_path):
    copy = Path(shutil.copytree(models["student"], tmp_path / "student"))
    shutil.copy(copy / "model.safetensors", copy / "pytorch_model.safetensors")
    kept = json.loads((copy / "generation_config.json").read_text())
    (copy / "generation_config.json").write_text(json.dumps(kept | {"temperature": 0.6}))
    unread, unsaved = check_run(settings(models, questions, student={"path": str(copy)})).notes
    assert "pytorch_model.safetensors is not read" in unread
    assert "sets temperature in a way that transformers ignores and does not save" in unsaved


def test_control_tokens_need_rows_where_a_text_may_hold_them(models, questions, tmp_path):
    copy = shutil.copytree(models["student"], tmp_path / "student")
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_tokens([f"<more{n}>" for n in range(8)], special_tokens=True)
    tokenizer.add_tokens(["<picture>"], special_tokens=True)
    tokenizer.save_pretrained(copy)
    own: dict[str, Any] = {"student": {"path": str(copy)}}
    check_run(settings(models, questions, **own))
    with pytest.raises(ModelError, match=r"beyond the 136 rows of .*: 136 \('<picture>'\)"):
        check_run(settings(models, questions, **own, data={"allow_control_tokens": True}))


def test_a_quantised_teacher_may_score_and_may_not_be_mixed_in(models, questions, tmp_path):
    copy = Path(shutil.copytree(models["teacher"], tmp_path / "teacher"))
    kept = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(kept | {"quantization_config": {"quant_method": "fp8"}}))
    fp8: dict[str, Any] = {"teacher": {"path": str(copy)}}
    with pytest.raises(ModelError, match=r"teacher\.path = .* is quantised \(quant_method = \"fp8\"\)"):
        check_run(settings(models, questions, **fp8))
    check_run(settings(models, questions, **fp8, rollout={"teacher_mix": 0, "max_new_tokens": 32}))
    with pytest.raises(ModelError, match=r"student\.path = .* is quantised"):
        check_run(
            settings(models, questions, student=fp8["teacher"], teacher=None, objective={"kind": "sft"})
        )

"""An evaluation is read from flags, a file or both; what is wrong is said at once, with the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from minillm_ray.common.errors import ConfigError, DataError
from minillm_ray.deploy.cli.multi_value import repeat_flags
from minillm_ray.deploy.config.loader import load_eval
from minillm_ray.deploy.evaluation.runner import evaluate
from minillm_ray.tests.tiny_models import tiny_model

FLAGS: dict[str, Any] = {"models": ["a", "b/best"], "data": ["x/dev.jsonl", "test.jsonl"]}


def faults(overrides: list[str], **flags: Any) -> list[str]:
    with pytest.raises(ConfigError) as found:
        load_eval(None, overrides, FLAGS | flags)
    return list(map(str, found.value.faults))


def test_one_flag_takes_many_values_up_to_the_next_flag_or_setting():
    args = [
        "--models",
        "a",
        "b",
        "--teacher",
        "t",
        "--data",
        "x.jsonl",
        "y.jsonl",
        "num_seeds=3",
        "--output-dir",
        "o",
    ]
    assert list(repeat_flags(args, {"--models", "--data"})) == [
        *("--models", "a", "--models", "b", "--teacher", "t"),
        *("--data", "x.jsonl", "--data", "y.jsonl", "num_seeds=3", "--output-dir", "o"),
    ]


def test_a_list_ends_at_a_file_of_settings_and_a_flag_without_a_value_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("eval.yaml").write_text("num_seeds: 2\n")
    assert list(repeat_flags(["--models=a", "b", "eval.yaml"], {"--models"})) == [
        *("--models", "a", "--models", "b", "eval.yaml"),
    ]
    for args in (["--models", "--data", "x.jsonl"], ["--data", "x.jsonl", "--models"]):
        with pytest.raises(typer.BadParameter, match="--models needs at least one value"):
            list(repeat_flags(args, {"--models", "--data"}))


def test_models_are_called_as_written_and_data_by_their_files():
    config = load_eval(None, ["num_seeds=3"], FLAGS)
    assert config.model_names() == ["a", "b/best"]
    assert config.data_names() == ["dev", "test"]
    assert config.seed_numbers == (10, 20, 30)


def test_a_files_relative_paths_start_at_its_folder_and_flags_win(tmp_path):
    (tmp_path / "dev.jsonl").write_text("{}\n")
    file = tmp_path / "eval.yaml"
    file.write_text("models: [one]\ndata: [{path: dev.jsonl, extract: exact}]\nengine: {max_new_tokens: 9}\n")
    config = load_eval(file, [], {"models": ["other"]})
    assert config.model_names() == ["other"]
    assert config.data[0].path == str(tmp_path / "dev.jsonl")
    assert (config.data[0].extract, config.engine.max_new_tokens) == ("exact", 9)


@pytest.mark.parametrize(
    ("overrides", "flags", "says"),
    [
        ([], {"metrics": ["bleu"]}, "metrics = bleu is unknown; known are rouge_l,"),
        (
            [],
            {"metrics": ["reverse_kl"]},
            "metrics = reverse_kl compares with a teacher, and none is set; set teacher.path",
        ),
        ([], {"models": ["a", "a"]}, "models has two that are called a; give each a models[...].name"),
        (
            [],
            {"data": ["x/t.jsonl", "y/t.jsonl"]},
            "data has two that are called t; give each a data[...].name",
        ),
        ([], {"models": []}, "models is missing; name models (--models A B)"),
        (["engine.max_tokens=9"], {}, "engine.max_tokens is unknown; did you mean engine.max_new_tokens?"),
        (["num_seeds=0"], {}, "invalid value 0 for num_seeds; expected a whole number at least 1"),
    ],
)
def test_an_impossible_evaluation_is_one_fault_with_its_way_out(overrides, flags, says):
    (found,) = faults(overrides, **flags)
    assert found.startswith(says)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("models") / "model", width=64, layers=1)


@pytest.mark.parametrize(
    ("metric", "row", "says"),
    [
        ("rouge_l", {}, "metrics = rouge_l needs right answers, and no record of asked has one"),
        ("accuracy", {"output": "red"}, "accuracy needs to know how an answer's verdict is found"),
        (
            "calibration",
            {"output": "red"},
            "calibration needs label words, and none of asked has",
        ),
        (
            "rouge_l",
            {"output": "red", "choices": ["red", "blue"]},
            "rouge_l is taken from answers, and all data",
        ),
        (
            "calibration",
            {"output": "red", "choices": ["blue", "green"]},
            r"data\[asked\]\.choices = choices: line 1 of asked.* which is none of its label words",
        ),
        (
            "calibration",
            {"output": "red", "choices": "red"},
            "holds 'red'; give a list of at least two label words",
        ),
    ],
)
def test_a_figure_that_data_cannot_give_is_refused_before_anything_starts(model, tmp_path, metric, row, says):
    asked = tmp_path / "asked.jsonl"
    asked.write_text(json.dumps({"instruction": "say it"} | row) + "\n")
    config = load_eval(
        None,
        ["max_prompt_tokens=64", "engine.max_new_tokens=8", "engine.kv_cache_gib=0.02"],
        {"models": [str(model)], "data": [str(asked)], "metrics": [metric], "output_dir": tmp_path / "out"},
    )
    with pytest.raises(DataError, match=says):
        evaluate(config)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_else_or_with_other_settings_is_not_written_into(model, tmp_path):
    asked = tmp_path / "asked.jsonl"
    asked.write_text(json.dumps({"instruction": "say it", "output": "red"}) + "\n")
    flags = {"models": [str(model)], "data": [str(asked)], "output_dir": tmp_path / "out"}
    small = ["max_prompt_tokens=64", "engine.max_new_tokens=8", "engine.kv_cache_gib=0.02"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds something other than an evaluation"):
        evaluate(load_eval(None, small, flags))
    (tmp_path / "out" / "precious.txt").unlink()
    (tmp_path / "out" / "config.yaml").write_text("num_seeds: 2\n")
    with pytest.raises(ConfigError, match=r"other settings \(.*num_seeds"):
        evaluate(load_eval(None, small, flags))

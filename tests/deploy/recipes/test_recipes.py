"""The run files that the project ships are ones that a run can be made of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from minillm_ray.benchmarks.recipes import gpt2_size, label_words, stories
from minillm_ray.common.errors import DataError
from minillm_ray.deploy import recipes
from minillm_ray.deploy.config.loader import load_run
from minillm_ray.tests.tiny_models import tiny_model

FOLDER = Path(recipes.__file__).parent
FILES = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_recipe_is_read_without_a_fault_and_begins_with_what_it_is(file):
    assert load_run(file).output_dir.name == file.stem.replace("_", "-")
    assert file.read_text().startswith("# ")


def test_stories_are_told_and_a_student_cut(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stories, "NUM_STORIES", 20)
    monkeypatch.setattr(stories, "BATCH", 10)
    teacher = tiny_model("llama", tmp_path / "teacher")
    stories.main(teacher)
    rows = [json.loads(line) for line in Path("data/stories.jsonl").read_text().splitlines()]
    assert len(rows) > 10
    assert all(row["instruction"] and row["output"] for row in rows)
    assert json.loads(Path("models/stories-cut/config.json").read_text())["num_hidden_layers"] == 1


def test_models_of_a_size_are_made_with_another_ones_tokenizer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpt2_size, "SIZES", {"small": {"n_embd": 64, "n_layer": 1, "n_head": 2}})
    gpt2_size.main(tiny_model("llama", tmp_path / "other"))
    assert (tmp_path / "models" / "small" / "model.safetensors").exists()
    assert (tmp_path / "models" / "small" / "tokenizer.json").exists()


def test_classification_sets_become_rows_with_label_words(tmp_path):
    table, passages = tmp_path / "dev.tsv", tmp_path / "dev.jsonl"
    table.write_text('a "fine film\t1\ndull , dull\t0\n')
    passages.write_text(json.dumps({"question": "is it so", "passage": "It is.", "label": True}) + "\n")
    assert label_words.main("sst2", table, tmp_path / "sst2.jsonl") == 2
    assert label_words.main("boolq", passages, tmp_path / "boolq.jsonl") == 1
    films = [json.loads(line) for line in (tmp_path / "sst2.jsonl").read_text().splitlines()]
    assert [(row["input"], row["output"]) for row in films] == [
        ('a "fine film', "positive"),
        ("dull , dull", "negative"),
    ]
    (asked,) = [json.loads(line) for line in (tmp_path / "boolq.jsonl").read_text().splitlines()]
    assert (asked["output"], asked["choices"]) == ("yes", ["no", "yes"])
    table.write_text("no label here\n")
    with pytest.raises(DataError, match="line 1"):
        label_words.main("sst2", table, tmp_path / "sst2.jsonl")

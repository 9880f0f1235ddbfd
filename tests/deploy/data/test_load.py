"""What a run reads as a whole: repeated prompts are noted, endings collected, readers come from plug-ins."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from minillm_ray.common.config.run import RunConfig
from minillm_ray.common.errors import InputError
from minillm_ray.deploy.data.load import RunData, load_run_data

from .chat_tokenizers import TEMPLATES, chat_tokenizer

CHATML = TEMPLATES["other role names, another end than eos"]


def config(folder: Path, train: Sequence[str], test: Sequence[str] = (), **more: Any) -> RunConfig:
    data: dict[str, Any] = {}
    for name, rows in (("train", train), ("test", test)):
        if rows:
            path = folder / f"{name}.jsonl"
            lines = (json.dumps({"instruction": row, "output": "yes"}) for row in rows)
            path.write_text("".join(f"{line}\n" for line in lines))
            data[name] = {"path": str(path)}
    settings = {"student": {"path": "s"}, "teacher": {"path": "t"}, "output_dir": str(folder / "run")}
    return RunConfig.model_validate(settings | {"data": data | more.pop("data", {})} | more)


def load(config: RunConfig, template: str = CHATML) -> RunData:
    found: list[InputError] = []
    data = load_run_data(config, chat_tokenizer(template), found)
    assert not found
    return data


def test_prompts_that_are_tested_and_trained_are_noted(tmp_path):
    data = load(config(tmp_path, [f"ask {n}" for n in range(30)], ["ask 7", "another", "ask 9"]))
    assert data.notes == ["data.test: 2 of 3 prompts are also training prompts (heldout/0 is train/7)"]


def test_many_repeated_prompts_are_noted_and_few_are_not(tmp_path):
    few = load(config(tmp_path, [f"ask {n}" for n in range(60)] + ["ask 1"]))
    assert few.notes == []
    many = load(config(tmp_path, ["ask 1", "ask 2"] * 10))
    assert many.notes == ["data.train: 18 of 20 prompts are there before, token for token"]


def test_the_ends_of_answers_are_the_template_s_and_the_tokenizer_s(tmp_path):
    words = chat_tokenizer(CHATML)
    ends = sorted(words.get_vocab()[text] for text in ("<eos>", "<|im_end|>"))
    assert list(load(config(tmp_path, ["a"])).answer_format.end_ids) == ends
    plain = load(config(tmp_path, ["a"], data={"template": "plain"}))
    assert plain.answer_format.end_ids == (words.eos_token_id,)


def test_a_chat_template_of_a_file_goes_with_the_student(tmp_path):
    own = tmp_path / "own.jinja"
    own.write_text("{% for m in messages %}({{ m.content }}){% endfor %}")
    data = load(config(tmp_path, ["a"], data={"chat_template": str(own)}))
    assert data.answer_format.chat_template == own.read_text()


def test_all_turns_of_given_chats_are_learned_where_that_is_asked(tmp_path):
    chat = [{"role": role, "content": "x"} for role in ("user", "assistant", "user", "assistant")]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    train = {"path": str(tmp_path / "chats.jsonl"), "messages": "messages"}
    asked = config(
        tmp_path, [], data={"train": train, "train_on": "all_assistant"}, objective={"kind": "sft"}
    )
    assert [one.prompt_id for one in load(asked).answers] == ["train/0@1", "train/0@3"]


def test_a_reader_of_a_package_of_two_files_reads_its_own_format(tmp_path, monkeypatch):
    package = tmp_path / "reader_of_this_test"
    package.mkdir()
    (package / "__init__.py").write_text("from .reading import read\n\ndata_readers = {'.pairs': read}\n")
    (package / "reading.py").write_text(
        "def read(path):\n"
        "    for line in path.read_text().splitlines():\n"
        "        question, _, answer = line.partition(' = ')\n"
        "        if not answer:\n"
        "            raise ValueError(f'no answer to {question}')\n"
        "        yield {'instruction': question, 'output': answer}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "a.pairs").write_text("1 + 1 = 2\n2 + 2 = 4\n")
    more: dict[str, Any] = {"data": {"train": {"path": str(tmp_path / "a.pairs")}}}
    data = load(config(tmp_path, [], plugins=("reader_of_this_test",), **more))
    assert [(p.text, p.references) for p in data.prompts] == [("1 + 1", ("2",)), ("2 + 2", ("4",))]
    (tmp_path / "a.pairs").write_text("1 + 1\n")
    found: list[InputError] = []
    load_run_data(
        config(tmp_path, [], plugins=("reader_of_this_test",), **more), chat_tokenizer(CHATML), found
    )
    assert "a.pairs cannot be read: no answer to 1 + 1" in str(found[0])
    found.clear()
    load_run_data(config(tmp_path, [], **more), chat_tokenizer(CHATML), found)
    with pytest.raises(InputError, match=r"is not of a known kind"):
        raise found[0]

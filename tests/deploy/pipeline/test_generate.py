"""A generation is an ordinary run file in which one model answers, and goes on only as it began."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from minillm_ray.common.config.data import PromptData
from minillm_ray.common.config.generate import GenerateConfig
from minillm_ray.common.errors import ConfigError, DataError, ModelError
from minillm_ray.deploy.data.readers import read_rows
from minillm_ray.deploy.data.templates import as_read, records_of
from minillm_ray.deploy.pipeline.generate import (
    check_generation,
    find_existing,
    generate,
    load_generation,
    pieces,
)
from minillm_ray.tests.tiny_models import tiny_model
from minillm_ray.tests.tiny_runs import write_questions

RUN = """
student: {{path: small}}
teacher: {{path: {teacher}}}
data: {{train: {{path: {questions}}}, validation: {{path: v.jsonl}}, template: plain, max_prompt_tokens: 32}}
rollout: {{num_engines: 2, num_generations: 3, max_new_tokens: 16, max_num_seqs: 8, kv_cache_gib: 0.02}}
objective: {{kind: kd, sampled_share: 0.5}}
text: {{path: text.txt}}
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("generate")
    teacher = tiny_model("llama", folder / "teacher")
    questions = write_questions(folder / "questions.jsonl")
    (folder / "run.yaml").write_text(RUN.format(teacher=teacher, questions=questions))
    return folder


def asked(files: Path, out: Path, *overrides: str, **options) -> GenerateConfig:
    return load_generation(files / "run.yaml", overrides, output_dir=out, **options)


def test_a_generation_takes_of_a_run_file_what_it_needs_and_nothing_else(files, tmp_path):
    config = asked(files, tmp_path, "seed=3")
    assert (config.by, config.model.path) == ("teacher", str(files / "teacher"))
    assert (config.rollout.num_engines, config.rollout.num_generations) == (2, 3)
    assert (config.data.template, config.max_tokens, config.seed) == ("plain", 48, 3)
    assert config.output_dir == tmp_path
    assert set(GenerateConfig.model_fields).isdisjoint({"objective", "learner", "validation", "text"})
    assert len(check_generation(config).prompts) == 40


def test_the_student_can_answer_where_there_is_no_teacher(files, tmp_path):
    made = asked(files, tmp_path, f"student.path={files / 'teacher'}", "teacher=null", by="student")
    assert check_generation(made).vocabulary == 128
    with pytest.raises(ConfigError, match="teacher is missing, and it is the model that answers"):
        asked(files, tmp_path, "teacher=null")


def test_the_teacher_can_answer_where_there_is_no_student(files, tmp_path):
    assert asked(files, tmp_path, "student=null").model.path == str(files / "teacher")


def test_settings_that_a_generation_does_not_use_are_checked_as_a_run_s_are(files, tmp_path):
    wrong = ["learner.lr=1", "text.block_tokens=0", "data.validation.limit=0", "objective.gamma=2"]
    with pytest.raises(ConfigError) as found:
        asked(files, tmp_path, *wrong)
    assert {fault.key for fault in found.value.faults} == {
        "learner.lr", "text.block_tokens", "data.validation.limit", "objective.gamma"
    }  # fmt: skip


def test_a_missing_model_is_named_as_the_run_file_names_it(files, tmp_path):
    with pytest.raises(ModelError, match=r"teacher\.path = ./none"):
        check_generation(asked(files, tmp_path, "teacher.path=./none"))


def test_too_little_cache_and_context_and_a_missing_file_are_told_at_once_by_their_settings(files, tmp_path):
    small = ["rollout.kv_cache_gib=1e-5", "rollout.max_new_tokens=250", "data.train.path=./none.jsonl"]
    config = asked(files, tmp_path, *small)
    with pytest.raises(ConfigError) as found:
        check_generation(config)
    assert [fault.key for fault in found.value.faults] == [
        "data.max_prompt_tokens", "rollout.kv_cache_gib", "data.train.path"
    ]  # fmt: skip


def test_pieces_are_consecutive_and_cover_what_is_left():
    assert list(pieces([0, 1, 2, 5, 6, 9], 2)) == [range(0, 2), range(2, 3), range(5, 7), range(9, 10)]
    assert list(pieces([], 2)) == []


def test_answers_begun_with_other_settings_are_not_gone_on_with(files, tmp_path, monkeypatch):
    from minillm_ray.deploy.pipeline import generate as module

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_draw", stop)
    with pytest.raises(KeyboardInterrupt):
        generate(asked(files, tmp_path))
    with pytest.raises(ConfigError) as found:
        generate(
            asked(
                files,
                tmp_path,
                "rollout.temperature=0.5",
                "rollout.num_generations=4",
                "rollout.num_engines=1",
            )
        )
    assert [(fault.key, fault.value) for fault in found.value.faults] == [
        ("rollout.num_generations", 4),
        ("rollout.temperature", 0.5),
    ]
    with pytest.raises(KeyboardInterrupt):
        generate(asked(files, tmp_path, "rollout.num_engines=1", "rollout.chunk=5", keep_cut=True))
    other = files / "other.jsonl"
    other.write_text((files / "questions.jsonl").read_text().replace("say", "sing"))
    (files / "questions.jsonl").replace(files / "kept.jsonl")
    other.replace(files / "questions.jsonl")
    with pytest.raises(DataError, match=r"data\.train differs from what the work in .* first in train/0"):
        generate(asked(files, tmp_path))
    (files / "kept.jsonl").replace(files / "questions.jsonl")


def test_a_stopped_generation_is_found_with_all_its_settings(files, tmp_path, monkeypatch):
    from minillm_ray.deploy.pipeline import generate as module

    def stop(*_):
        raise KeyboardInterrupt

    config = asked(files, tmp_path, "rollout.temperature=0.5", "cluster.cpus=3", "seed=7", keep_cut=True)
    monkeypatch.setattr(module, "_draw", stop)
    with pytest.raises(KeyboardInterrupt):
        generate(config)
    assert find_existing(tmp_path) == config
    (tmp_path / "config.yaml").write_text("student: {path: a}\n")
    assert find_existing(tmp_path) is None


def test_a_folder_of_something_else_is_left_alone(files, tmp_path):
    (tmp_path / "config.yaml").write_text("student: {path: a}\n")
    with pytest.raises(ConfigError, match="something other than answers"):
        generate(asked(files, tmp_path))


def test_questions_are_stated_as_in_their_source(tmp_path):
    asks, answers = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "?"}
    tools = [{"type": "function", "function": {"name": "sum"}}]
    rows = [
        {"ask": "add", "context": "1 2", "chat": [asks], "tools": tools},
        {"ask": "say", "context": None, "chat": [asks, answers]},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = PromptData(path=str(path), instruction="ask", input="context")
    columns = [as_read(record) for record in records_of(read_rows(source, "data.train"), "train")]
    assert columns == [{"instruction": "add", "input": "1 2"}, {"instruction": "say", "input": ""}]
    chats = records_of(read_rows(PromptData(path=str(path), messages="chat"), "data.train"), "train")
    assert [as_read(record) for record in chats] == [
        {"messages": [asks], "tools": tools},
        {"messages": [asks]},
    ]

"""The command line teaches, and says what is wrong in one line with the way out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from minillm_ray.common.config.run import RunConfig
from minillm_ray.deploy.cli import main as cli
from minillm_ray.deploy.cli.main import main
from minillm_ray.deploy.cli.settings_table import iter_settings
from minillm_ray.deploy.config.loader import save_resolved
from minillm_ray.tests.tiny_models import tiny_model
from minillm_ray.tests.tiny_runs import tiny_run, write_questions
from rich.console import Console

COMMANDS = (
    "train",
    "sft",
    "generate",
    "eval",
    "compare",
    "resume",
    "check",
    "data",
    "verify",
    "settings",
    "pretrain-tiny",
    "fetch-model",
    "cut-model",
    "demo",
)


@pytest.fixture
def minillm(monkeypatch, capsys):
    """Runs `minillm` with these words; gives (exit code, what it printed, what it complained)."""
    monkeypatch.setenv("COLUMNS", "100")  # for help
    monkeypatch.setattr(cli, "console", Console(width=100))

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["minillm", *map(str, words)])
        code: object = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        return int(str(code or 0)), printed.out, printed.err

    return run


@pytest.fixture(scope="module")
def run_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    model = tiny_model("llama", folder / "model")
    config = tiny_run(model, model, write_questions(folder / "questions.jsonl"), folder / "out")
    save_resolved(config, folder / "run")
    return folder / "run" / "config.yaml"


def test_help_names_every_command_and_a_first_step(minillm):
    code, out, _ = minillm("--help")
    assert code == 0
    assert all(name in out for name in COMMANDS)
    assert "minillm demo" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(minillm, command):
    code, out, _ = minillm(command, "--help")
    assert code == 0
    assert len(out.split()) > 25


def test_the_smallest_run_file_of_the_help_is_one_that_is_read(minillm, tmp_path):
    from minillm_ray.deploy.config.loader import load_run

    _, out, _ = minillm("train", "--help")
    lines = [line.strip("│ \n") for line in out.splitlines()]
    start = next(i for i, line in enumerate(lines) if line.startswith("student:"))
    shown = lines[start : start + 5]
    assert [line.split(":")[0] for line in shown] == ["student", "teacher", "data", "train", "output_dir"]
    shown[3] = "  " + shown[3]
    (tmp_path / "run.yaml").write_text("\n".join(shown))
    assert load_run(tmp_path / "run.yaml", []).learner.world_size == 1


def test_help_comes_without_loading_torch():
    code = "import sys; from minillm_ray.deploy import cli; print({'torch', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_settings_are_all_listed_with_default_and_meaning(minillm):
    _, out, _ = minillm("settings")
    found = list(iter_settings(RunConfig))
    assert len(found) > 60
    for name, _, meaning in found:
        assert name in out
        assert meaning or name.startswith("cluster."), f"{name} has no docstring"
    _, out, _ = minillm("settings", "rollout.")
    assert "rollout.teacher_mix" in out
    assert "learner." not in out


def test_a_prefix_that_no_setting_has_names_its_neighbour(minillm):
    code, _, err = minillm("settings", "rolout")
    assert code == 2
    assert "rollout" in err


def test_an_unknown_key_is_told_without_a_trace(minillm, run_file):
    code, _, err = minillm("check", run_file, "learner.stepps=3")
    assert code == 2
    assert "learner.stepps" in err
    assert "learner.max_steps" in err
    assert "Traceback" not in err


def test_check_says_what_runs_where_in_a_hundred_columns(minillm, run_file):
    code, out, _ = minillm("check", run_file)
    assert code == 0
    for word in ("2 x learner", "1 x rollout", "1 x teacher", "KV cache", "optimiser", "object store"):
        assert word in out
    assert max(map(len, out.splitlines())) <= 100


def test_data_shows_what_a_run_reads_and_how_long_it_is(minillm, run_file):
    code, out, _ = minillm("data", run_file, "--head", "2")
    assert code == 0
    for part in (
        "train/0",
        "Q: say red red",
        "A:",
        "not trained",
        "reference: red",
        "40 used, 0 dropped",
        "median",
    ):
        assert part in out
    assert "train/2" not in out
    code, out, _ = minillm("data", run_file, "data.max_prompt_tokens=18")
    assert "dropped, prompt_too_long: 4, such as train/36: 19" in out
    assert "tokens > data.max_prompt_tokens = 18" in out


def test_data_as_json_is_one_record_a_line_and_nothing_else(minillm, run_file):
    code, out, _ = minillm("data", run_file, "--json", "objective.kind=sft", "rollout.teacher_mix=0")
    assert code == 0
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["id"] for record in records] == [f"train/{n}" for n in range(40)]
    keys = ["id", "prompt", "answer", "prompt_ids", "answer_ids", "references"]
    assert all(list(record) == keys for record in records)
    first = records[0]
    assert first["prompt"] == "Q: say red red\nA:"
    assert first["answer"] == " red<eos>"
    assert len(first["answer_ids"]) == 5
    assert first["references"] == ["red"]
    _, out, _ = minillm("data", run_file, "--json", "--head", "1")
    assert len(out.splitlines()) == 1


def test_data_that_a_run_does_not_have_is_said(minillm, run_file):
    code, _, err = minillm("data", run_file, "--split", "test")
    assert code == 2
    assert "data.test is missing; set data.test.path, or show another: train" in err


def test_a_folder_that_is_no_run_cannot_be_resumed(minillm, tmp_path):
    code, _, err = minillm("resume", tmp_path)
    assert code == 2
    assert "config.yaml" in err


def test_a_run_is_not_written_into_an_older_ones_folder(minillm, run_file, tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    code, _, err = minillm("train", run_file, f"output_dir={tmp_path}")
    assert code == 2
    assert "minillm resume" in err


def test_a_cut_model_is_made_by_one_command(minillm, run_file, tmp_path):
    model = run_file.parents[1] / "model"
    code, out, _ = minillm("cut-model", model, 1, tmp_path / "cut")
    assert code == 0
    assert "1 layers of" in out
    assert (tmp_path / "cut" / "model.safetensors").exists()


def test_a_comparison_shows_tables_and_says_where_its_pictures_are(minillm, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "validation/rouge_l": 30.0}\n')
    words = tmp_path / "a", tmp_path / "b", "--label", "before", "after", "--output-dir", tmp_path / "out"
    code, out, _ = minillm("compare", *words)
    assert code == 0
    assert all(word in out for word in ("before", "after", "30.0", "quality.png"))
    assert (tmp_path / "out" / "quality.png").exists()


def test_a_fault_that_quotes_a_file_is_told_as_it_stands(minillm, tmp_path):
    (tmp_path / "metrics.jsonl").write_text("[/red]\n")
    code, _, err = minillm("compare", tmp_path)
    assert code == 2
    assert "[/red]" in err

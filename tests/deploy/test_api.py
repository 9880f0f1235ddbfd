"""The public face: cheap to import, complete, and the same settings in whatever form they come."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import minillm_ray as mr
import pyarrow.parquet as pq
import pytest
from minillm_ray.common.errors import ConfigError, DataError
from minillm_ray.deploy.config.loader import save_resolved
from minillm_ray.deploy.config.presets import as_sft
from minillm_ray.deploy.config.values import run_config
from minillm_ray.deploy.data.given import write_data
from minillm_ray.tests.tiny_runs import tiny_run, write_questions

PUBLIC = {
    *("RunConfig", "EvalConfig", "STOP"),
    *("train", "sft", "resume", "generate", "evaluate", "compare", "check"),
}


def test_all_that_is_public_is_there_listed_and_documented():
    assert PUBLIC <= set(mr.__all__) <= set(dir(mr))
    for name in mr.__all__:
        assert getattr(mr, name).__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'trainn'"):
        mr.trainn  # noqa: B018


def test_the_import_loads_no_library():
    program = (
        "import sys; before = set(sys.modules); import minillm_ray;"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["minillm_ray"]


def test_a_configuration_a_mapping_and_a_file_mean_the_same_run(tmp_path: Path):
    config = tiny_run(Path("t"), Path("s"), write_questions(tmp_path / "q.jsonl"), tmp_path / "out")
    file = save_resolved(config, tmp_path / "kept")
    given = config.model_dump(mode="json", exclude_unset=True)
    assert run_config(config) == run_config(given) == run_config(file) == run_config(str(file)) == config


def test_a_configuration_and_a_mapping_mean_the_same_fine_tuning(tmp_path: Path):
    tree = {
        "student": {"path": str(tmp_path)},
        "data": {
            "train": {"path": "rows.jsonl", "output": "o"},
            "validation": {"path": "rows.jsonl", "output": "o"},
        },
        "output_dir": "runs/relative",
    }
    fine_tuned = run_config(tree, as_sft())
    assert run_config(mr.RunConfig(**tree), as_sft()).model_dump(exclude={"data"}) == fine_tuned.model_dump(
        exclude={"data"}
    )
    assert (fine_tuned.objective.kind, fine_tuned.learner.optimizer.lr) == ("sft", 5e-5)
    assert run_config(mr.RunConfig(**tree)).output_dir.is_absolute(), (
        "actors have working directories of their own"
    )


def test_data_takes_the_place_of_a_splits_file_and_its_columns_stay(tmp_path: Path):
    tree = {
        "student": {"path": "s"},
        "teacher": {"path": "t"},
        "data": {"train": {"path": "old.jsonl", "split": "train[:5]", "instruction": "question"}},
        "output_dir": str(tmp_path / "run"),
    }
    train = run_config(tree, data=[{"question": "why"}]).data.train
    assert train is not None
    assert train.path == str(tmp_path / "run" / "data" / "train.parquet")
    assert (train.instruction, train.split) == ("question", "train")


def test_data_beside_a_split_that_is_no_section_is_a_fault_of_that_split():
    with pytest.raises(ConfigError, match=r"data\.train = rows\.jsonl is not a section"):
        run_config({"student": {"path": "s"}, "data": {"train": "rows.jsonl"}}, data=[{"question": "why"}])


def test_a_value_that_no_yaml_file_could_hold_is_named():
    with pytest.raises(ConfigError, match="give text, numbers, lists and mappings"):
        run_config({"student": {"path": "s"}, "learner": {"batch_size": object()}})


def test_rows_of_answers_that_were_begun_are_never_replaced_by_others(tmp_path: Path):
    """`resume` needs them."""
    write_data([{"instruction": "why"}], tmp_path)
    write_data([{"instruction": "why"}], tmp_path, resumes=True)
    with pytest.raises(DataError, match="give the same rows, or another output_dir"):
        write_data([{"instruction": "how"}], tmp_path, resumes=True)
    kept = tmp_path / "data" / "train.parquet"
    assert pq.read_table(kept).to_pylist() == [{"instruction": "why"}]
    (tmp_path / "config.yaml").write_text("do: train\n")
    with pytest.raises(ConfigError, match="holds something other than answers"):
        mr.generate(
            {"teacher": {"path": "t"}, "data": {"train": {}}},
            data=[{"instruction": "how"}],
            output_dir=tmp_path,
        )
    assert pq.read_table(kept).to_pylist() == [{"instruction": "why"}]


def test_every_fault_of_a_mapping_is_told_at_once():
    with pytest.raises(ConfigError) as told:
        run_config({"student": {"path": "s"}, "rollout": {"teacher_mix": 2}, "learner": {"batch_size": 0}})
    assert all(key in str(told.value) for key in ("rollout.teacher_mix", "learner.batch_size"))

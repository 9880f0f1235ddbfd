"""The public face: cheap to import, complete, and the same settings in whatever form they come."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import minillm_ray as mr
import pytest
from minillm_ray.common.errors import ConfigError
from minillm_ray.deploy.config.loader import save_resolved
from minillm_ray.deploy.config.values import run_config
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
    assert run_config(config) is config
    assert run_config(given) == run_config(file) == run_config(str(file)) == config


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


def test_every_fault_of_a_mapping_is_told_at_once():
    with pytest.raises(ConfigError) as told:
        run_config({"student": {"path": "s"}, "rollout": {"teacher_mix": 2}, "learner": {"batch_size": 0}})
    assert all(key in str(told.value) for key in ("rollout.teacher_mix", "learner.batch_size"))

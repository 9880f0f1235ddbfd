"""What a cluster without the package gets: a bare working_dir does not deliver it, py_modules does."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.ray


def job(runtime_env: dict[str, Any], program: str, cwd: Path) -> Any:
    """What the task `ask` of `program` returns, run by a driver of its own on this session's cluster."""
    import ray

    head = f"""
import json, ray
ray.init({ray.get_runtime_context().gcs_address!r}, runtime_env={runtime_env!r}, log_to_driver=False)
"""
    tail = "print(json.dumps(ray.get(ray.remote(ask).remote(), timeout=120)))"
    source = head + textwrap.dedent(program) + tail
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=cwd, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_bare_working_dir_says_how_to_deliver_the_package(ray_cluster: None, copy: Path, tmp_path: Path):
    (copy / "runs").mkdir(exist_ok=True)
    (copy / "runs/large.bin").write_bytes(b"\1" * 1000)
    # -S: a Python that sees no installed package, as on a machine that never installed this one.
    answer = job(
        {"working_dir": str(copy)},
        """
        def ask():
            import os, subprocess, sys
            asked = ("-c", "import minillm_ray"), ("-m", "deploy.cli.main", "x"), ("-c", "import common")
            bare = [sys.executable, "-S"]
            done = [subprocess.run([*bare, *each], capture_output=True, text=True) for each in asked]
            return {"files": os.listdir(), "said": [(each.returncode, each.stderr) for each in done]}
        """,
        tmp_path,
    )
    assert {"deploy", "pyproject.toml"} <= set(answer["files"])
    assert not {".typing", "runs", ".venv"} & set(answer["files"])
    (_, by_name), *by_folder = answer["said"]
    assert "No module named 'minillm_ray'" in by_name
    for code, said in by_folder:
        assert code != 0
        assert "a Ray working_dir" in said
        assert "pip install ." in said


def test_py_modules_delivers_the_package(ray_cluster: None, wheel: Path, tmp_path: Path, repo: Path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    file = job(
        {"py_modules": [str(tmp_path / "minillm_ray")]},
        """
        def ask():
            import minillm_ray.common.types as types
            return types.__file__
        """,
        tmp_path.parent,
    )
    assert file.endswith("/minillm_ray/common/types.py")
    assert not Path(file).is_relative_to(repo)
    assert not Path(file).is_relative_to(tmp_path)

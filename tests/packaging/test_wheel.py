"""What is installed is all of the package and nothing else, as a wheel and editable."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import pytest

FOLDERS = ("common/", "actors/", "learner/", "deploy/")
QUIETLY: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 120, "check": False}
SITE = sysconfig.get_paths()["purelib"]


def bare(*command: str, path: tuple[Path | str, ...] = ()) -> str:
    """Output of a Python that sees no installed package, only `path`."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run(
        [sys.executable, "-S", *command],
        env=env,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_wheel_holds_every_module_and_data_file_and_nothing_else(wheel: Path, tracked: list[str]):
    names = set(zipfile.ZipFile(wheel).namelist())
    ours = {name.removeprefix("minillm_ray/") for name in names if name.startswith("minillm_ray/")}
    assert ours == {
        name for name in tracked if name.startswith(FOLDERS) or name in {"__init__.py", "py.typed"}
    }
    rest = {name.split("/")[0] for name in names if not name.startswith("minillm_ray/")}
    assert rest == {f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"}


def test_the_wheel_carries_its_licence_and_both_entry_points(wheel: Path):
    archive = zipfile.ZipFile(wheel)
    info = "-".join(wheel.name.split("-")[:2]) + ".dist-info"
    assert "Apache License" in archive.read(f"{info}/licenses/LICENSE").decode()
    entry_points = archive.read(f"{info}/entry_points.txt").decode()
    assert "minillm = minillm_ray.deploy.cli.main:main" in entry_points
    assert "[vllm.general_plugins]" in entry_points
    assert "License-Expression: Apache-2.0" in archive.read(f"{info}/METADATA").decode()


def test_the_wheel_works_without_the_project_beside_it(wheel: Path, tmp_path: Path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    program = "import minillm_ray.deploy.cli.main as cli; print(cli.__file__); cli.app(['--version'])"
    output = bare("-c", program, path=(tmp_path, SITE))
    assert output.splitlines()[0] == str(tmp_path / "minillm_ray/deploy/cli/main.py")
    assert output.splitlines()[1].startswith("minillm-ray ")


def test_an_editable_install_follows_the_folder_whatever_its_name(copy: Path, tmp_path: Path):
    environment = tmp_path / "venv"
    python = environment / "bin/python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True, timeout=60)
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    installed = subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", *options, "--editable", str(copy)],
        env={**os.environ, "PYTHONPATH": SITE},
        **QUIETLY,
    )
    assert installed.returncode == 0, installed.stderr
    program = "import minillm_ray.common.errors as errors; print(errors.__file__)"
    found = subprocess.run([python, "-c", program], cwd="/", **QUIETLY)
    assert found.stdout.strip() == str(copy / "common/errors.py")
    assert (environment / "bin/minillm").exists()


@pytest.mark.parametrize("folder", ["common", "actors", "learner", "deploy"])
def test_an_uninstalled_folder_says_how_to_install_it(copy: Path, folder: str):
    with pytest.raises(AssertionError, match=r"pip install \."):
        bare("-c", f"import {folder}", path=(copy,))

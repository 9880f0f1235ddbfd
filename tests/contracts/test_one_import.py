"""A module of ours exists once in a process: never `actors.sampler` beside `minillm_ray.actors.sampler`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDERS = ("common", "actors", "learner", "deploy")


def run(repo: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=repo, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_second_import_under_the_bare_name_is_refused(repo: Path, folder: str):
    done = run(repo, "-c", f"import minillm_ray.{folder}\nimport {folder}")
    assert done.returncode == 1
    assert f"or import minillm_ray.{folder}" in done.stderr


def test_a_second_import_of_one_module_is_refused(repo: Path):
    done = run(repo, "-c", "import minillm_ray.common.types\nimport common.types")
    assert done.returncode == 1
    assert "belongs to the package minillm_ray" in done.stderr


@pytest.mark.parametrize(
    "line", ["from common.types import Rollout", "import actors.sampler", "import learner"]
)
def test_the_linter_names_a_bare_import(repo: Path, line: str):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "--stdin-filename", "deploy/seeded.py", "-"],
        input=f'"""A module."""\n\n{line}\n',
        cwd=repo,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "TID251" in done.stdout


def twice(modules: dict[str, str]) -> dict[str, list[str]]:
    """Files of ours that stand behind more than one of the loaded modules (name -> file)."""
    names: dict[str, list[str]] = {}
    for name, file in modules.items():
        names.setdefault(file, []).append(name)
    return {file: sorted(found) for file, found in names.items() if len(found) > 1}


def test_no_module_of_ours_is_loaded_under_two_names(repo: Path):
    """Looks at this very process, with all that the other tests have imported into it."""
    loaded = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and _is_ours(Path(file), repo):
            loaded[name] = str(Path(file).resolve())
    assert twice(loaded) == {}


def _is_ours(file: Path, repo: Path) -> bool:
    return any(file.resolve().is_relative_to(repo / folder) for folder in FOLDERS)


def test_a_module_loaded_twice_is_caught():
    modules = {
        "minillm_ray.actors.sampler": "/a/sampler.py",
        "actors.sampler": "/a/sampler.py",
        "os": "/b/os.py",
    }
    assert twice(modules) == {"/a/sampler.py": ["actors.sampler", "minillm_ray.actors.sampler"]}

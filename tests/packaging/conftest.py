"""A copy of what is tracked, so that building and installing leave nothing in the project itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tracked(repo: Path) -> list[str]:
    """Every tracked file, from the root."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=repo, capture_output=True, timeout=60, check=False)
    if listed.returncode:
        pytest.skip("not a git clone, so nobody knows which files are tracked")
    return [name for name in listed.stdout.decode().split("\0") if name and (repo / name).exists()]


@pytest.fixture(scope="session")
def copy(repo: Path, tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked files in a folder of their own; not a git clone."""
    folder = tmp_path_factory.mktemp("copy") / "anywhere"
    for name in tracked:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(repo / name, target, follow_symlinks=False)
    return folder


@pytest.fixture(scope="session")
def wheel(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built offline with the setuptools at hand."""
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(copy)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (built,) = out.glob("*.whl")
    return built

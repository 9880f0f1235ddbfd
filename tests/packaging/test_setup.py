"""`make setup` looks at the machine before it downloads anything, and says all that is wrong at once."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

TOOLS = ("bash", "dirname", "sha256sum", "cut", "cat", "awk", "grep", "git")


@pytest.fixture
def machine(repo: Path, tmp_path: Path) -> Path:
    """A clone, and a `bin` that is all its PATH: tests put strange programs there."""
    (tmp_path / "clone/.ci").mkdir(parents=True)
    for name in ("pyproject.toml", "constraints-cpu.txt", ".ci/setup.sh"):
        shutil.copy2(repo / name, tmp_path / "clone" / name)
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None, f"this machine has no {tool}"
        (tmp_path / "bin" / tool).symlink_to(found)
    put(tmp_path, "python3.11", "exit 0")
    put(tmp_path, "uname", 'if [ "$1" = -s ]; then echo Linux; else echo x86_64; fi')
    put(tmp_path, "df", "echo head; echo disk 1 1 999999999")
    return tmp_path


def put(machine: Path, name: str, body: str) -> None:
    """A program of this name on the machine."""
    program = machine / "bin" / name
    program.unlink(missing_ok=True)
    program.write_text(f"#!/usr/bin/env bash\n{body}\n")
    program.chmod(0o755)


def set_up(machine: Path) -> subprocess.CompletedProcess[str]:
    """Run the script with nothing but the machine's own programs."""
    env = {"PATH": str(machine / "bin"), "HOME": str(machine), "TMPDIR": str(machine)}
    bash = shutil.which("bash")
    assert bash is not None
    script = machine / "clone/.ci/setup.sh"
    return subprocess.run(
        [bash, str(script)], env=env, capture_output=True, text=True, timeout=60, check=False
    )


def test_all_faults_of_a_machine_are_said_at_once_and_nothing_is_downloaded(machine: Path):
    put(machine, "uname", 'if [ "$1" = -s ]; then echo Linux; else echo aarch64; fi')
    put(machine, "df", "echo head; echo disk 1 1 1048576")
    put(machine, "python3.11", 'case "$*" in *libnuma*) exit 1;; *ensurepip*) exit 1;; esac')
    (machine / "bin/git").unlink()
    done = set_up(machine)
    assert done.returncode == 1
    assert done.stdout == ""
    first, *faults = done.stderr.splitlines()
    assert "nothing was downloaded" in first
    for fault, words in zip(
        faults,
        ("aarch64", "git", "python3.11-venv", "libnuma1", "1024 MiB are free in ", "TMPDIR"),
        strict=True,
    ):
        assert words in fault
    assert not (machine / "clone/.venv").exists()


def test_a_machine_without_python_311_is_told_how_to_name_one(machine: Path):
    put(machine, "python3.11", "exit 127")
    done = set_up(machine)
    assert done.returncode == 1
    assert "PYTHON=/path/to/python3.11" in done.stderr
    assert "libnuma" not in done.stderr


def test_what_will_be_downloaded_is_said_before_it_is(machine: Path):
    put(machine, "python3.11", 'if [ "$1" = -m ]; then echo "the first thing done: $*"; exit 3; fi')
    done = set_up(machine)
    assert done.returncode == 3
    said, _, first = done.stdout.partition("the first thing done: ")
    assert "downloads about 1 GB" in said
    assert "minutes" in said
    assert first == "-m venv .venv\n"


def test_a_second_call_does_nothing(machine: Path):
    clone = machine / "clone"
    program = clone / ".venv/bin/minillm"
    program.parent.mkdir(parents=True)
    program.write_text("")
    program.chmod(0o755)
    bash = shutil.which("bash") or "bash"
    digest = "{ pwd -P; cat pyproject.toml constraints-cpu.txt .ci/setup.sh; } | sha256sum | cut -d' ' -f1"
    wanted = subprocess.run(
        [bash, "-c", digest], cwd=clone, capture_output=True, text=True, check=True
    ).stdout
    (clone / ".venv/.setup-done").write_text(wanted)
    put(machine, "python3.11", "exit 127")
    done = set_up(machine)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    with (clone / "constraints-cpu.txt").open("a") as constraints:
        constraints.write("another==1\n")
    assert set_up(machine).returncode == 1

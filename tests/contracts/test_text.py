"""No tracked text names a path of somebody's machine or holds a leftover of unfinished work."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from minillm_ray.tests.needs import lacking

# Written so that this file does not match itself.
MACHINE_PATH = re.compile(r"(?<![\w.~$}])/(?:wor" r"k|roo" r"t|hom" r"e/\w+|Use" r"rs/\w+)/[\w.]")
LEFTOVER = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b|<<<<" r"<<< ")


def tracked_text(repo: Path) -> dict[str, str]:
    """Path -> text of every tracked file that is text."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=repo, capture_output=True, timeout=60, check=False)
    if listed.returncode:
        pytest.skip("not a git clone, so nobody knows which files are tracked")
    found = {}
    for name in listed.stdout.decode().split("\0"):
        path = repo / name
        if not name or path.is_symlink() or not path.is_file() or b"\0" in (data := path.read_bytes()):
            continue
        found[name] = data.decode("utf-8")
    return found


def hits(pattern: re.Pattern[str], texts: dict[str, str]) -> list[str]:
    return [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def test_no_tracked_text_names_a_path_of_a_machine(repo: Path):
    assert hits(MACHINE_PATH, tracked_text(repo)) == []


def test_no_tracked_text_holds_a_leftover(repo: Path):
    assert hits(LEFTOVER, tracked_text(repo)) == []


@pytest.mark.parametrize("line", ["see /{}k/main/x.py", "open('/{}t/.cache')", "/{}e/anna/models"])
def test_a_path_of_a_machine_is_caught(line: str):
    start = {"k": "wor", "t": "roo", "e": "hom"}[line[line.index("}") + 1]]
    assert hits(MACHINE_PATH, {"a.md": line.format(start)}) == [f"a.md:1: {line.format(start)}"]


@pytest.mark.parametrize("line", ["https://example.org/work/x", "runs/work/a.json", "~/work/x", "$HOME/x"])
def test_an_address_or_a_relative_path_is_not_caught(line: str):
    assert hits(MACHINE_PATH, {"a.md": line}) == []


def test_a_leftover_is_caught():
    assert hits(LEFTOVER, {"a.py": "x = 1  # TO" + "DO later"}) == ["a.py:1: x = 1  # TO" + "DO later"]


def test_scripts_can_be_run(repo: Path):
    for script in (".ci/run", ".ci/setup.sh"):
        path = repo / script
        assert path.stat().st_mode & 0o111, f"{script} is not executable"
        subprocess.run(["bash", "-n", str(path)], check=True, timeout=60)


def test_scripts_have_no_fault_that_shellcheck_knows(repo: Path):
    if shutil.which("shellcheck") is None:
        lacking("shellcheck", "this machine has no shellcheck; apt-get install shellcheck")
    scripts = [str(repo / script) for script in (".ci/run", ".ci/setup.sh")]
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == ""


@pytest.mark.parametrize(("named", "outcome"), [("", "Skipped"), ("x,shellcheck", "Failed")])
def test_what_is_required_by_name_is_no_reason_to_skip(named: str, outcome: str, monkeypatch):
    monkeypatch.setenv("MINILLM_REQUIRE", named)
    with pytest.raises(BaseException, match="no shellcheck") as ended:
        lacking("shellcheck", "no shellcheck")
    assert type(ended.value).__name__ == outcome


def test_every_data_file_in_the_shipped_folders_is_meant_to_ship(repo: Path):
    """A stray checkpoint or notebook in a package folder would grow the wheel unseen."""
    kinds = {".py", ".yaml", ".jsonl", ".json", ".safetensors", ".jinja", ".md"}
    strays = [
        name
        for name in tracked_text(repo)
        if name.split("/")[0] in {"common", "actors", "learner", "deploy"} and Path(name).suffix not in kinds
    ]
    assert [name for name in strays if not name.endswith("Dockerfile")] == []

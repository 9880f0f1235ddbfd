"""Every command, run file and Python block of the documents says whether it has been tried."""

from __future__ import annotations

from pathlib import Path

import pytest
from minillm_ray.tests.docs.fences import complaints, documents, fences


def test_every_block_that_can_be_run_says_whether_it_is_tested(repo: Path):
    found = [fence for file, text in documents(repo).items() for fence in fences(file, text)]
    assert len(found) > 20
    assert [line for fence in found for line in complaints(fence)] == []


def test_readers_find_commands_run_files_and_python_that_were_tried(repo: Path):
    tried = {
        fence.language
        for file, text in documents(repo).items()
        for fence in fences(file, text)
        if fence.mark == "test"
    }
    assert {"bash", "yaml", "python"} <= tried


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("```bash\nminillm check run.yaml\n```\n", "needs"),
        ("<!-- test -->\n\n```yaml\nseed: 1\n```\n", "needs"),
        ("<!-- tested -->\n```bash\nls\n```\n", "tested"),
        ("```\nls\n```\n", "language ''"),
        ("Text.\n  ```python\n  x = 1\n  ```\n", "needs"),
    ],
)
def test_a_block_without_a_mark_is_caught(text: str, word: str):
    (found,) = fences("a.md", text)
    assert word in complaints(found)[0]


def test_a_block_is_read_with_its_mark_its_name_and_its_line():
    text = "# Title\n\n<!-- untried -->\n```yaml\n# run.yaml\nseed: 1\n```\n\n```text\n```yaml\n```\n"
    first, second = fences("a.md", text)
    assert (first.where, first.language, first.mark) == ("a.md:4", "yaml", "untried")
    assert (first.name, first.text) == ("run.yaml", "# run.yaml\nseed: 1\n")
    assert (second.language, second.mark, complaints(second)) == ("text", None, [])

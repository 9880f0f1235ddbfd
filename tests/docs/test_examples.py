"""What the documents mark as tested is executed, page by page, as a reader would do it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from minillm_ray.tests.docs.fences import Fence, documents, fences
from minillm_ray.tests.docs.session import make_stand_ins, prepare, run_blocks

ROOT = Path(__file__).resolve().parents[2]
PAGES: dict[str, list[Fence]] = {
    file: tested
    for file, text in documents(ROOT).items()
    if (tested := [fence for fence in fences(file, text) if fence.mark == "test"])
}
STARTS_RAY = re.compile(
    r"^\s*(?:minillm (?:train|sft|resume|generate|eval) |ray )|\bminillm_ray\.train\(", re.M
)


def needs_ray(page: str) -> bool:
    return any(STARTS_RAY.search(block.text) for block in PAGES[page])


def marked(page: str):
    marks = [pytest.mark.slow]
    if needs_ray(page):
        marks += [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(1200)]
    return pytest.param(page, marks=marks)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_stand_ins(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("page", [marked(page) for page in PAGES])
def test_what_a_page_says_can_be_done(page: str, models: Path, tmp_path: Path):
    prepare(tmp_path, ROOT, models)
    run_blocks(PAGES[page], tmp_path, ROOT)


@pytest.mark.parametrize("page", list(PAGES))
def test_the_run_files_of_a_page_can_be_used(page: str, tmp_path: Path):
    """The quick part of the above, so that a setting's new name is missed within seconds."""
    prepare(tmp_path, ROOT)
    for block in PAGES[page]:
        if block.language == "python" and block.name:
            (tmp_path / block.name).write_text(block.text, encoding="utf-8")
    run_blocks([block for block in PAGES[page] if block.language == "yaml"], tmp_path, ROOT)


def test_few_pages_start_ray():
    assert 1 <= len([page for page in PAGES if needs_ray(page)]) <= 3


@pytest.mark.parametrize(
    "block",
    [
        Fence("a.md", 3, "bash", "test", "exit 3\n"),
        Fence("a.md", 3, "bash", "test", "false | true\n"),
        Fence("a.md", 3, "python", "test", "assert 1 == 2\n"),
        Fence("a.md", 3, "yaml", "test", "seed: 1\n"),
        Fence("a.md", 3, "yaml", "test", "# run.yaml\nstudent: {path: a}\nnonsense: 1\n"),
    ],
)
def test_a_block_that_fails_is_named(block: Fence, tmp_path: Path):
    with pytest.raises((AssertionError, ValueError), match=r"a\.md:3|nonsense"):
        run_blocks([block], tmp_path, ROOT)

"""The site builds without a warning, its pages are all reachable, and its reference pages miss nothing."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from minillm_ray import EvalConfig, RunConfig
from minillm_ray.common.metrics import CATALOGUE

GENERATED = {
    *(f"reference/{name}.md" for name in ("settings", "eval-settings", "command-line", "python", "metrics")),
    *("development/contributing.md", "development/changelog.md"),
}
"""Pages that docs/generate.py writes."""


@pytest.fixture(scope="module")
def site(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning of MkDocs fails it."""
    folder = tmp_path_factory.mktemp("site")
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=repo, env=env, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def words_of(page: Path) -> str:
    """The text of a built page, tags left out."""
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


def in_nav(repo: Path) -> list[str]:
    """Every page that mkdocs.yml lists, in its order."""

    def pages(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        for inner in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
            yield from pages(inner)

    return list(pages(yaml.safe_load((repo / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))


def test_every_page_is_in_the_navigation_once_and_every_entry_is_a_page(repo: Path):
    listed = in_nav(repo)
    pages = {page.relative_to(repo / "docs").as_posix() for page in (repo / "docs").rglob("*.md")}
    assert sorted(listed) == sorted(pages | GENERATED)


def test_the_site_builds_strictly_and_has_every_page(site: Path, repo: Path):
    assert [page for page in in_nav(repo) if not (site / page).with_suffix(".html").is_file()] == []


def test_no_page_loads_anything_from_elsewhere(site: Path):
    loads = re.compile(r"<(?:script|img|iframe)[^>]*\ssrc=.https?:|<link[^>]*\srel=.stylesheet[^>]*https?:")
    pages = {page.name: page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    assert [name for name, text in pages.items() if loads.search(text)] == []


@pytest.mark.parametrize(("page", "tree"), [("settings", RunConfig), ("eval-settings", EvalConfig)])
def test_every_setting_is_on_its_page_with_its_meaning(site: Path, page: str, tree: Any):
    shown = " ".join(words_of(site / f"reference/{page}.html").split())
    schema = tree.model_json_schema()
    fields = [
        (name, " ".join(field.get("description", "").replace("`", "").split()))
        for section in (schema, *schema["$defs"].values())
        for name, field in section.get("properties", {}).items()
        if "$ref" not in field
    ]
    assert len(fields) > 15
    assert [name for name, meaning in fields if name not in shown or meaning not in shown] == []


def test_every_metric_is_on_its_page(site: Path):
    shown = words_of(site / "reference/metrics.html")
    assert [name for name in CATALOGUE if name not in shown] == []


def test_every_command_is_on_its_page(site: Path):
    import typer
    from minillm_ray.deploy.cli.main import app

    group: Any = typer.main.get_command(app)
    shown = words_of(site / "reference/command-line.html")
    assert len(group.commands) > 8
    assert [name for name in group.commands if f"minillm {name}" not in shown] == []


@pytest.mark.parametrize(
    "name",
    ["RunConfig", "EvalConfig", "train", "sft", "resume", "generate", "evaluate", "compare", "check", "STOP"],
)
def test_every_public_object_is_documented(site: Path, name: str):
    page = (site / "reference/python.html").read_text(encoding="utf-8")
    assert re.search(rf'id="minillm_ray\.[\w.]+\.{name}"', page)


@pytest.mark.parametrize(("file", "most"), [("README.md", 900), ("docs/performance.md", 900)])
def test_what_is_read_first_is_short(repo: Path, file: str, most: int):
    words = [word for word in (repo / file).read_text(encoding="utf-8").split() if re.search(r"\w", word)]
    assert len(words) <= most


@pytest.mark.parametrize("file", ["docs/results.md", "docs/performance.md"])
def test_conclusions_come_before_tables_and_pictures(repo: Path, file: str):
    text = (repo / file).read_text(encoding="utf-8")
    opening = text[: text.index("\n## ")]
    assert "**" in opening
    assert not re.search(r"^\||^!\[|^```", opening, re.M)


def test_commits_and_histories_are_in_the_lab_notes_alone(repo: Path):
    commit = re.compile(r"`[0-9a-f]{7,40}`")
    pages = [page for page in (repo / "docs").rglob("*.md") if "lab-notes" not in page.parts]
    named = [
        page.relative_to(repo).as_posix() for page in pages if commit.search(page.read_text(encoding="utf-8"))
    ]
    assert named == []

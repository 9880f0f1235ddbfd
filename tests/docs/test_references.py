"""What documents name exists: files, settings and metrics; and what code names of documents exists too."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from minillm_ray import EvalConfig, RunConfig
from minillm_ray.common.metrics import CATALOGUE
from minillm_ray.tests.docs.fences import documents
from pydantic import BaseModel

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = "common|actors|learner|deploy|tests|benchmarks|docs"
FILE = re.compile(rf"`((?:{FOLDERS})/(?!test_)[\w./-]*\w\.\w+)(?:::\w+)?`")
TEST = re.compile(r"`((?:actors|common|learner|deploy|flow)/test_\w+\.py)")
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)[^)]*\)")
DOCUMENT = re.compile(r"(?<![\w/.])docs/[\w./-]+\.(?:md|png)")
PARTS = sorted({name.split("/")[0] for name in CATALOGUE})
METRIC = re.compile(rf"`((?:{'|'.join(PARTS)})/[a-z_0-9]+)`")
MADE_UP = "docs/a.md"
"""A document that tests invent."""
HISTORY = ("CHANGELOG.md", "lab-notes", "0010-layout-and-names.md")
"""Documents that name what is gone."""


def pages(repo: Path) -> dict[str, str]:
    """The documents that describe the present code."""
    return {file: text for file, text in documents(repo).items() if not any(part in file for part in HISTORY)}


def named(pattern: re.Pattern[str], texts: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(file, what it names)."""
    for file, text in texts.items():
        for found in pattern.finditer(text):
            yield file, found[1] if pattern.groups else found[0]


def sections(tree: type[BaseModel], path: str = "") -> Iterator[str]:
    """The dotted names of all sections and settings."""
    for name, field in tree.model_fields.items():
        yield path + name
        for inner in section_types(field.annotation):
            yield from sections(inner, f"{path}{name}.")


def section_types(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    inner = getattr(annotation, "__args__", ()) or ()
    return [found for part in inner for found in section_types(part)]


SETTINGS = {*sections(RunConfig), *sections(EvalConfig)}
SECTION_NAMES = sorted({name.split(".")[0] for name in SETTINGS if "." in name} - {"models"})
SETTING = re.compile(rf"`((?:{'|'.join(SECTION_NAMES)})\.[a-z_][\w.]*)(?:`|=|:| )")


def unknown_settings(texts: dict[str, str]) -> list[tuple[str, str]]:
    """Dotted names that are neither settings nor, such as `objective.token_loss`, functions of a module."""
    return [
        (file, name) for file, name in named(SETTING, texts) if name not in SETTINGS and not is_function(name)
    ]


def is_function(name: str) -> bool:
    module, _, function = name.partition(".")
    source = ROOT / "learner" / f"{module}.py"
    return source.is_file() and f"\ndef {function}(" in source.read_text(encoding="utf-8")


def test_files_that_documents_name_exist(repo: Path):
    texts = pages(repo)
    assert [(file, name) for file, name in named(FILE, texts) if not (repo / name).exists()] == []
    assert [(file, name) for file, name in named(TEST, texts) if not (repo / "tests" / name).exists()] == []


def test_links_of_documents_in_the_root_lead_somewhere(repo: Path):
    texts = {file: text for file, text in documents(repo).items() if "/" not in file}
    assert [(file, name) for file, name in named(LINK, texts) if not (repo / name).exists()] == []


def test_documents_that_code_names_exist(repo: Path):
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=repo, capture_output=True, timeout=60, check=False)
    if listed.returncode:
        pytest.skip("not a git clone, so nobody knows which files are tracked")
    files = [name for name in listed.stdout.decode().split("\0") if name.endswith((".py", ".yaml", ".toml"))]
    texts = {name: (repo / name).read_text(encoding="utf-8") for name in files if (repo / name).is_file()}
    gone = [(file, name) for file, name in named(DOCUMENT, texts) if not (repo / name).exists()]
    assert [(file, name) for file, name in gone if name != MADE_UP] == []


def test_settings_that_documents_name_exist(repo: Path):
    texts = pages(repo)
    assert len(list(named(SETTING, texts))) > 50
    assert unknown_settings(texts) == []


def test_metrics_that_documents_name_exist(repo: Path):
    assert [(file, name) for file, name in named(METRIC, pages(repo)) if name not in CATALOGUE] == []


def test_a_setting_that_is_not_there_is_caught():
    assert unknown_settings({"a.md": "set `rollout.num_answers=3` or `learner.optimizer.lr`"}) == [
        ("a.md", "rollout.num_answers")
    ]

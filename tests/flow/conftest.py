"""A tiny teacher, a tinier student and questions for them."""

from __future__ import annotations

from pathlib import Path

import pytest
from minillm_ray.tests.tiny_models import tiny_model
from minillm_ray.tests.tiny_runs import write_questions


@pytest.fixture(scope="session")
def questions(tmp_path_factory) -> Path:
    """Questions that all runs of the session share."""
    return write_questions(tmp_path_factory.mktemp("data") / "questions.jsonl")


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory) -> tuple[Path, Path]:
    """(teacher, student): random LLaMA models of unlike size with one tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    teacher = tiny_model("llama", folder / "teacher", seed=1, width=96, layers=2, tied=False)
    return teacher, tiny_model("llama", folder / "student", seed=2, width=64, layers=1, tied=True)

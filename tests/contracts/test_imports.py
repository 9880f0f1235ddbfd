"""The import contracts: who imports whom, how long a file is, what a light import loads."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from minillm_ray.tests.contracts import import_rules as rules

ROOT = Path(__file__).resolve().parents[2]


FILES = rules.shipped_files(ROOT)


def test_every_file_imports_only_what_its_folder_may():
    assert len(FILES) > 20
    assert [fault for path, source in FILES.items() for fault in rules.faults(path, source)] == []


@pytest.mark.parametrize(
    ("path", "line", "complaint"),
    [
        ("common/words.py", "from ..actors import sampler", "common may not use actors"),
        ("actors/sampler.py", "from ..learner.returns import rewards", "actors may not use learner"),
        ("learner/step.py", "from ..actors.scorer import Scorer", "learner may not use actors"),
        ("learner/step.py", "def f():\n    from ..deploy import train", "learner may not use deploy"),
        ("actors/evaluation/judge.py", "from ...learner import step", "actors may not use learner"),
        ("actors/evaluation/judge.py", "from .... import sys", "climbs out of the package"),
        ("deploy/training/driver.py", "from common.types import Rollout", "by an absolute name"),
        ("deploy/training/driver.py", "import minillm_ray.common", "by an absolute name"),
        ("actors/sampler.py", "import vllm.config", "vllm is only for"),
        ("actors/scorer.py", "import ray", "ray is only for"),
        ("learner/step.py", "from deepspeed import zero", "deepspeed is only for"),
        ("learner/ray_like.py", "from ray.util import queue", "ray is only for"),
        ("learner/step.py", "x = 1\n" * 401, "402 lines"),
    ],
)
def test_a_file_that_breaks_a_rule_is_caught(path: str, line: str, complaint: str):
    found = rules.faults(path, f'"""A module."""\n{line}')
    assert len(found) == 1
    assert complaint in found[0]


def test_a_module_without_an_opening_sentence_is_caught():
    assert rules.faults("common/words.py", "x = 1\n") == [
        "common/words.py: opens without a sentence that says what it is"
    ]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("actors/workers.py", "import ray"),
        ("learner/worker.py", "import ray"),
        ("actors/evaluation/judge.py", "from ..mixing import warp"),
        ("actors/evaluation/judge.py", "from ...common.errors import DataError"),
        ("deploy/runtime/cluster.py", "import ray\nfrom ..learner.group import LearnerGroup"),
        ("deploy/demo/run.py", "import ray\nfrom ..training.driver import Driver"),
        ("deploy/cli/main.py", "from .. import __version__"),
    ],
)
def test_what_the_rules_allow_is_not_caught(path: str, line: str):
    assert rules.faults(path, f'"""A module."""\n{line}\n') == []


def test_no_module_is_allowed_a_library_that_it_does_not_import():
    uses = {
        (top, path.removesuffix(".py"))
        for path, source in FILES.items()
        for dots, name, _ in rules.imports(ast.parse(source))
        if not dots and (top := name.split(".")[0]) in rules.IMPORTERS
    }
    for library, importers in rules.IMPORTERS.items():
        for importer in importers:
            assert any(top == library and path.startswith(importer) for top, path in uses), (
                library,
                importer,
            )


def test_no_folder_holds_more_modules_than_one_can_take_in():
    assert rules.crowded(FILES) == {}
    many = [f"actors/m{number}.py" for number in range(rules.MAX_MODULES + 1)]
    assert rules.crowded([*many, "actors/__init__.py"]) == {"actors": rules.MAX_MODULES + 1}


def test_the_map_names_every_folder_and_every_module_outside_deploy():
    written = (ROOT / "docs/concepts/architecture.md").read_text()
    folders = {path.rpartition("/")[0] for path in FILES}
    assert {folder for folder in folders if f"`{folder}/`" not in written} == set()
    stems = {
        Path(path).stem for path in FILES if re.fullmatch(r"(common|actors|learner)/(?!__)\w+\.py", path)
    }
    assert {stem for stem in stems if f"`{stem}`" not in written} == set()


def test_the_map_names_no_module_that_is_gone():
    written = (ROOT / "docs/concepts/architecture.md").read_text()
    rows = [line.split("|")[1] for line in written.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named <= {Path(path).stem for path in FILES}


def test_the_contracts_of_import_linter_hold():
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert "3 kept, 0 broken" in done.stdout


def test_no_module_imports_itself_by_way_of_others():
    assert rules.cycle(rules.edges(FILES)) == []


def test_a_cycle_of_imports_is_caught():
    files = {
        "learner/__init__.py": "",
        "learner/a.py": "from . import b",
        "learner/b.py": "from .c import x\nfrom ..common.errors import DataError",
        "learner/c.py": "from ..learner.a import y",
        "common/errors.py": "def f():\n    from .words import late",
        "common/words.py": "from .errors import DataError",
    }
    graph = rules.edges(files)
    assert rules.cycle(graph) == ["learner.a", "learner.b", "learner.c", "learner.a"]
    del files["learner/c.py"]
    assert rules.cycle(rules.edges(files)) == []


def test_the_root_holds_no_module_but_its_init():
    """Any other would land in the wheel."""
    assert [path.name for path in ROOT.glob("*.py")] == ["__init__.py"]


def test_every_package_is_in_pyproject():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = {"minillm_ray"}
    for path in FILES:
        if path.endswith("/__init__.py"):
            found.add("minillm_ray." + path.removesuffix("/__init__.py").replace("/", "."))
    assert set(settings["tool"]["setuptools"]["packages"]) == found


def test_every_folder_with_modules_is_a_package():
    folders = {path.rsplit("/", 1)[0] for path in FILES}
    assert {folder for folder in folders if f"{folder}/__init__.py" not in FILES} == set()


def _uses_torch(source: str) -> bool:
    return any(name.split(".")[0] == "torch" for _, name, _ in rules.imports(ast.parse(source)))


def test_the_common_words_load_nothing_heavy():
    light = [
        "minillm_ray." + path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for path, source in FILES.items()
        if path.startswith("common/") and not _uses_torch(source)
    ]
    assert "minillm_ray.common.types" in light
    assert "minillm_ray.common.config.run" in light
    program = (
        f"import importlib, sys\nfor name in {light}:\n    importlib.import_module(name)\n"
        "print(*sorted({'torch', 'ray', 'vllm', 'deepspeed', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == []


def test_help_of_the_command_line_loads_nothing_heavy():
    program = (
        "import sys\nimport minillm_ray.deploy.cli.main\n"
        "print(*sorted({'torch', 'ray', 'vllm', 'deepspeed', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == []

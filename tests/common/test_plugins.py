"""What an installed package or a module of the run file offers is found by its name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from minillm_ray.common.errors import ConfigError
from minillm_ray.common.plugins import find_plugin, plugin_names


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of two files as pip leaves it: a module, and metadata with its entry points."""
    (tmp_path / "two_files.py").write_text("def hellinger(log_q, log_p, ids, tokens):\n    return 'found'\n")
    info = tmp_path / "two_files-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: two-files\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[minillm_ray.divergences]\nhellinger = two_files:hellinger\nbroken = two_files:nothing\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_an_entry_point_of_an_installed_package_is_found_by_its_name(installed):
    assert {"hellinger", "broken"} <= set(plugin_names("divergences"))
    assert find_plugin("divergences", "hellinger")(None, None, None, None) == "found"
    assert "hellinger" not in plugin_names("metrics_sinks")


def test_names_of_entry_points_are_known_without_importing_the_package(installed):
    program = (
        "import sys; from minillm_ray.common.plugins import plugin_names;"
        "print('hellinger' in plugin_names('divergences'), 'two_files' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(installed)!r}); {program}"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["True", "False"]


def test_an_entry_point_that_cannot_be_loaded_says_what_it_needs(installed):
    with pytest.raises(ConfigError, match="broken is offered by two_files:nothing, which cannot be imported"):
        find_plugin("divergences", "broken")


def test_a_module_of_the_run_file_comes_before_an_entry_point(installed):
    (installed / "mine.py").write_text("divergences = {'hellinger': 'ours'}\n")
    assert find_plugin("divergences", "hellinger", ["mine"]) == "ours"


def test_a_name_that_nobody_offers_is_told_with_those_that_are(installed):
    with pytest.raises(ConfigError, match=r"divergences = helinger is unknown; plugins offer .*hellinger"):
        find_plugin("divergences", "helinger")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "plugins = wrong cannot be imported"),
        ("divergences = ['a']\n", "expected a mapping from names"),
    ],
)
def test_a_module_that_offers_nothing_usable_is_refused(installed, text, says):
    if text is not None:
        (installed / "wrong.py").write_text(text)
    sys.modules.pop("wrong", None)
    with pytest.raises(ConfigError, match=says):
        plugin_names("divergences", ["wrong"])

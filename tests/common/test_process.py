"""What a process has held is told, what it writes is whole, and it says who it is."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from minillm_ray.common.process import (
    ProcessFacts,
    empty_folder,
    partial_path,
    replace_folder,
    write_atomically,
)

CODE = """
from minillm_ray.common.process import peak_resident
before = peak_resident()
held = bytearray(b"x" * (100 << 20))
del held
print(before, peak_resident())
"""


def test_memory_that_was_given_back_still_counts_as_held():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after - before > 90 << 20


def interrupted_while_writing(file: Path) -> None:
    with write_atomically(file) as unfinished:
        unfinished.write_text("ha")
        raise KeyboardInterrupt


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path):
    file = tmp_path / "new" / "file.txt"
    with write_atomically(file) as unfinished:
        unfinished.write_text("whole")
        assert not file.exists()
    assert file.read_text() == "whole"
    with pytest.raises(KeyboardInterrupt):
        interrupted_while_writing(file)
    assert file.read_text() == "whole"
    assert list(file.parent.iterdir()) == [file]


def test_a_folder_takes_the_place_of_another_with_all_that_is_in_it(tmp_path):
    folder, aside = tmp_path / "kept", partial_path(tmp_path / "kept")
    for text in ("first", "second"):
        empty_folder(aside)
        (aside / text).touch()
        replace_folder(aside, folder)
        assert [path.name for path in folder.iterdir()] == [text]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_process_tells_who_it_is_and_which_libraries_it_computes_with():
    facts = ProcessFacts.gather(
        "rollout-0", node="10.0.0.1", start_s=1.5, sees_run_dir=True, libraries=["numpy"]
    )
    assert (facts.name, facts.pid, facts.node, facts.start_s) == ("rollout-0", os.getpid(), "10.0.0.1", 1.5)
    assert facts.versions == {"python": platform.python_version(), "numpy": np.__version__}

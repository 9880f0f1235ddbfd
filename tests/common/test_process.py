"""What a process has held is told, what it writes is whole, which cores it may use, and it says who it is."""

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
    usable_cores,
    use_threads,
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


def control_groups(root: Path, membership: str, **files: str) -> Path:
    """A /proc and a /sys that say so; names of files below /sys/fs/cgroup, with `__` for a slash."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(membership)
    for name, text in files.items():
        file = root / "sys/fs/cgroup" / name.replace("__", "/").replace("cpu_", "cpu.")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return root


def fields(prefix: str, quota: int, period: int = 100_000) -> dict[str, str]:
    """Both files of a quota of version 1."""
    return {f"{prefix}cpu_cfs_quota_us": str(quota), f"{prefix}cpu_cfs_period_us": str(period)}


V1 = "4:memory:/box\n2:cpu,cpuacct:/box\n0::/\n"


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        pytest.param("0::/a/b\n", {"a__b__cpu_max": "300000 100000"}, 3, id="a quota"),
        pytest.param(
            "0::/a/b\n", {"a__cpu_max": "200000 100000", "a__b__cpu_max": "max 100000"}, 2, id="above"
        ),
        pytest.param("0::/\n", {"cpu_max": "250000 100000"}, 2, id="a container's own, rounded down"),
        pytest.param("0::/kubepods/pod7\n", {"cpu_max": "100000 100000"}, 1, id="a path of the host"),
        pytest.param("0::/a\n", {"a__cpu_max": "20000 100000"}, 1, id="less than a core"),
        pytest.param("0::/a\n", {"a__cpu_max": "max 100000"}, 8, id="no quota"),
        pytest.param("0::/a\n", {"a__cpu_max": "9900000 100000"}, 8, id="more than there is"),
        pytest.param("0::/a\n", {}, 8, id="no file"),
        pytest.param(V1, fields("cpu,cpuacct__box__", 150_000, 50_000), 3, id="version 1"),
        pytest.param(V1, fields("cpu__", 400_000), 4, id="version 1, a container's own"),
        pytest.param(V1, fields("cpu,cpuacct__box__", -1), 8, id="version 1, no quota"),
        pytest.param(V1, fields("memory__box__", 100_000), 8, id="a group of something else"),
    ],
)
def test_a_process_may_use_the_cores_that_quotas_leave(tmp_path, monkeypatch, membership, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert usable_cores(control_groups(tmp_path, membership, **files)) == cores


def test_a_process_may_use_the_cores_that_it_is_bound_to_and_never_none(tmp_path, monkeypatch):
    root = control_groups(tmp_path, "0::/\n", cpu_max="400000 100000")
    for bound in ({5}, {0, 3}):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, bound=bound: bound)
        assert usable_cores(root) == len(bound)
        assert usable_cores(tmp_path / "not Linux") == len(bound)
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores(tmp_path / "not Linux") == 1


def test_threads_are_those_that_were_set_or_all_cores_here_shared_by_those_who_are_here(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 4})
    monkeypatch.setattr("minillm_ray.common.process._quotas", lambda root: iter(()))
    for asked, sharing, threads in ((None, 1, 5), (None, 2, 2), (None, 9, 1), (12, 1, 12), (12, 4, 3)):
        monkeypatch.setenv("OMP_NUM_THREADS", "1")  # by Ray
        assert use_threads(asked, sharing) == threads
        assert os.environ["OMP_NUM_THREADS"] == str(threads)

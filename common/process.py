"""What every process needs: whole files, facts about itself, its cores, quick imports, and quiet threads."""

from __future__ import annotations

import gc
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

STATUS = Path("/proc/self/status")
OPENMP = {
    # Waiting OpenMP threads that spin take the cores from every other process on a shared machine: an engine
    # of tiny models was 60 times slower beside three busy processes. Between two operations of a step
    # sleeping and being woken costs more, so they spin for fractions of a millisecond (libgomp reads this).
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "5000",
}
"""Environment of every process that computes, read when OpenMP is loaded; what the user has set stays."""


def usable_cores(root: Path = Path("/")) -> int:
    """How many cores this process may keep busy: what affinity and quotas leave of the machine's, 1 at least.

    `os.cpu_count()` is what the machine has, whatever `taskset` or a container allows. Quotas are rounded
    down: threads that wait for each other all stand still once one too many has used the quota up. `root` is
    where /proc and /sys are.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *map(int, _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Cores' worth of time that this process's control groups grant, with those that they are part of."""
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for membership in memberships:
        _, controllers, path = membership.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Version 2 names no controllers; version 1 has a folder for each, or for some of them together.
        for hierarchy in {controllers, "cpu"} if controllers else {""}:
            folder = root / "sys/fs/cgroup" / hierarchy
            # A group also keeps to the limits of those above it. In a container the path may be the host's,
            # of which nothing is there; what limits the container then lies at the top.
            for part in ("", *PurePosixPath(path.lstrip("/")).parts):
                folder /= part
                if (quota := _quota(folder)) is not None:
                    yield quota


def _quota(folder: Path) -> float | None:
    """Cores' worth of time of one control group; None where nothing limits it."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if quota != "max" and int(quota) > 0 else None
    except (OSError, ValueError):
        return None


def use_threads(asked: int | None, sharing: int = 1) -> int:
    """Have libraries that are imported from now on compute with this many threads; returns how many.

    None asked: with all cores that this process may use, wherever it runs. `sharing` processes of one machine
    divide them. Ray has set the variable to whole CPUs that the actor reserves, which is no measure here,
    since actors that take turns reserve fractions.
    """
    threads = max(1, (asked or usable_cores()) // sharing)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    return threads


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` when the block ends without an error.

    So whoever opens `path` finds all of the file, the file as it was before, or none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = partial_path(path)
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def partial_path(path: Path) -> Path:
    """Where a file or folder is written before it is whole."""
    return path.with_name(path.name + ".partial")


def replace_folder(aside: Path, folder: Path) -> None:
    """Put `aside`, which is whole, in place of `folder`; at no moment is neither of them on disk."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(aside, folder)
    shutil.rmtree(old, ignore_errors=True)


def empty_folder(folder: Path) -> None:
    """Make the folder, without whatever was in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFacts:
    """What there is to know of a worker's process once it is ready, for the log."""

    name: str
    pid: int
    node: str
    """Address of its machine."""
    device: str
    """What it computes on: the GPU's name, or "cpu"."""
    threads: int | None
    """Of torch; None in a process that does not use it."""
    start_s: float
    """Seconds that it took to become ready."""
    sees_run_dir: bool
    """Whether it sees the driver's run directory, and logs there."""
    versions: dict[str, str]
    """Of Python, and of the libraries that it computes with."""

    @classmethod
    def gather(
        cls, name: str, *, node: str, start_s: float, sees_run_dir: bool, libraries: Sequence[str] = ()
    ) -> ProcessFacts:
        """Of this process, which has imported these libraries."""
        torch = sys.modules.get("torch")
        device = "cpu"
        if torch is not None and torch.cuda.is_available():
            device = torch.cuda.get_device_name()
        return cls(
            name=name,
            pid=os.getpid(),
            node=node,
            device=device,
            threads=None if torch is None else torch.get_num_threads(),
            start_s=start_s,
            sees_run_dir=sees_run_dir,
            versions={"python": sys.version.split()[0]}
            | {name: sys.modules[name].__version__ for name in libraries},
        )


def peak_resident(_: object = None) -> int:
    """Most bytes that this process has had in memory at a time, or 0 where the system does not say.

    Pages that are shared with others, such as weights in the object store, count in each. Takes and ignores
    an actor, so that Ray can run it inside one.
    """
    found = re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text()) if STATUS.exists() else None
    return int(found[1]) * 1024 if found else 0


@contextmanager
def collector_paused() -> Iterator[None]:
    """No search for garbage while libraries are imported.

    An import makes hundreds of thousands of objects that stay; searching through them again and again takes a
    fifth of its time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()

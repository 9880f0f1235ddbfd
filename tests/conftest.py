"""What many tests share: few threads, one local Ray cluster, and the folder of shared data if it is there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from minillm_ray.tests.needs import lacking

# Set before torch or ray are imported: several processes share few cores, and no test may reach out.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the project."""
    return REPO


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Models and data that are too large for the project: $MINILLM_SHARED, else `shared` beside it."""
    folder = Path(os.environ.get("MINILLM_SHARED", REPO.parent / "shared"))
    if not (folder / "golden").is_dir():
        lacking("shared", f"no shared data at {folder}; set MINILLM_SHARED to its folder")
    return folder


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A Ray cluster of this session alone, with more CPUs on paper than the machine has."""
    import ray

    # A cluster that nobody else can reach needs no token, and a stale token file must not fail a test.
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ.pop("RAY_ADDRESS", None)
    # Not given an address, Ray joins whatever cluster it finds on this machine.
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()

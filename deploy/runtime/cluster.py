"""Reaching a Ray cluster, or starting one on this machine for the length of a run."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.exceptions import RayError

from ...common.config.run import ClusterConfig
from ...common.errors import ClusterError
from ...common.process import usable_cores

REACH_S = 5.0
"""How long a head node may take to answer; Ray itself would go on trying for ten minutes."""


@contextmanager
def cluster(settings: ClusterConfig) -> Iterator[str]:
    """Connect for the length of the block; yields the dashboard's address ("" if there is none).

    With an address (from the settings, or RAY_ADDRESS, which a submitted job has) that cluster is used
    and left running; otherwise a local one is started and stopped again. A process that is connected
    already stays so, and nothing is started or stopped. Raises ClusterError.
    """
    if ray.is_initialized():
        yield ""
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = settings.address or os.environ.get("RAY_ADDRESS")
    if address:
        _check_reachable(address)
    try:
        if address:
            context = ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        else:
            context = ray.init(
                address="local",
                num_cpus=local_cpus(settings),
                include_dashboard=settings.dashboard,
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
    except (ConnectionError, RuntimeError, ValueError, RayError) as failure:
        raise _unreachable(address or "a new local cluster", failure) from failure
    try:
        yield f"http://{context.dashboard_url}" if context.dashboard_url else ""
    finally:
        ray.shutdown()


def local_cpus(settings: ClusterConfig) -> int:
    """CPUs that a local cluster declares. Left to itself Ray would not ask what `taskset` allows."""
    return settings.cpus or usable_cores()


def _check_reachable(address: str) -> None:
    """Raises ClusterError if nothing listens at host:port or ray://host:port."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # "auto" and the like, which Ray resolves itself
    try:
        socket.create_connection((host, int(port)), REACH_S).close()
    except OSError as failure:
        raise _unreachable(address, failure) from failure


def _unreachable(where: str, failure: Exception) -> ClusterError:
    return ClusterError(
        f"Ray is not reachable at {where}: {failure}\n  check `ray status` there (a token may be missing:"
        " RAY_AUTH_MODE=token), or leave cluster.address and RAY_ADDRESS unset to start a local cluster"
    )

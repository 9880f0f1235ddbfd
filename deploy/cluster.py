"""Reaching a Ray cluster, or starting one on this machine for the length of a run."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from ..common.config import ClusterConfig
from ..common.errors import ClusterError

_log = logging.getLogger(__name__)


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
    try:
        if address:
            context = ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        else:
            context = ray.init(
                address="local",
                num_cpus=None if settings.cpus is None else int(settings.cpus),
                include_dashboard=settings.dashboard,
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
    except (ConnectionError, RuntimeError, ValueError) as failure:
        raise ClusterError(
            f"Ray is not reachable at {address or 'a new local cluster'}: {failure}\n  check `ray status`"
            " there, or leave cluster.address and RAY_ADDRESS unset to start a local cluster"
        ) from failure
    try:
        yield f"http://{context.dashboard_url}" if context.dashboard_url else ""
    finally:
        ray.shutdown()

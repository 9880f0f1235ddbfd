"""A cluster that cannot be reached or is too small says so at once, with the way out."""

from __future__ import annotations

import socket
import time

import pytest
import ray
from minillm_ray.common.config.run import ClusterConfig
from minillm_ray.common.errors import ClusterError
from minillm_ray.deploy.runtime.cluster import cluster
from minillm_ray.deploy.runtime.placement import Bundle, Reservation


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def enter(settings: ClusterConfig) -> None:
    with cluster(settings):
        pass


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_where_nobody_listens_one_is_told_in_seconds(form, closed_port, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    began = time.monotonic()
    with pytest.raises(ClusterError) as told:
        enter(ClusterConfig(address=form.format(closed_port)))
    assert "Ray is not reachable at " in str(told.value)
    assert "check `ray status` there" in str(told.value)
    assert time.monotonic() - began < 10


def test_an_address_that_a_submitted_job_has_is_told_too(closed_port, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    with pytest.raises(ClusterError, match=f"127.0.0.1:{closed_port}"), cluster(ClusterConfig()):
        pass


def test_a_cluster_without_room_for_the_writer_is_refused_before_anything_is_reserved(monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 1.0})
    bundle = Bundle(name="rollout-0", role="rollout", cpus=1.0, gpus=0.0, threads=1)
    with pytest.raises(ClusterError, match=r"needs 1\.2 CPU .* the cluster has 1;"):
        Reservation([bundle], ClusterConfig(writer_cpus=0.2))


def test_places_that_others_hold_are_told_after_the_time_to_start(ray_cluster):
    bundle = Bundle(name="rollout-0", role="rollout", cpus=5.0, gpus=0.0, threads=1)
    settings = ClusterConfig(start_timeout_s=1.0)
    held = Reservation([bundle], settings)
    try:
        with pytest.raises(ClusterError, match=r"within cluster\.start_timeout_s = 1; free now"):
            Reservation([bundle], settings)
    finally:
        held.release()

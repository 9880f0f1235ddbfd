"""A cluster that cannot be reached or is too small says so at once; files are written where they belong."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from minillm_ray.common.config.run import ClusterConfig
from minillm_ray.common.errors import ClusterError
from minillm_ray.common.logs import ENVIRONMENT, start_run_logs
from minillm_ray.common.process import ProcessFacts
from minillm_ray.deploy.runtime.cluster import cluster
from minillm_ray.deploy.runtime.placement import Bundle, Reservation, check_folder_seen


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


@pytest.mark.parametrize(("settings", "declared"), [(ClusterConfig(), 1), (ClusterConfig(cpus=3), 3)])
def test_a_local_cluster_declares_what_was_set_or_the_cores_that_the_process_may_use(
    settings, declared, monkeypatch
):
    asked: dict[str, Any] = {}

    def start(**keywords: Any) -> Any:
        asked.update(keywords)
        return SimpleNamespace(dashboard_url="")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    enter(settings)
    assert asked["num_cpus"] == declared


def facts(name: str, *, sees: bool) -> ProcessFacts:
    return ProcessFacts.gather(name, node="10.0.0.2", start_s=1.0, sees_run_dir=sees)


def test_who_writes_into_a_folder_that_is_not_the_drivers_is_refused_with_the_way_out(tmp_path, monkeypatch):
    workers = [facts("writer", sees=False), facts("rollout-0", sees=False), facts("learner-0", sees=False)]
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    check_folder_seen(workers, ClusterConfig())  # there is no folder
    for name, value in start_run_logs(tmp_path / "run").environment().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ClusterError) as told:
        check_folder_seen(workers, ClusterConfig(writer_cpus=0.5))
    assert f"{tmp_path / 'run'} is not seen by learner-0 on 10.0.0.2, writer on 10.0.0.2," in str(told.value)
    assert "cluster.writer_cpus = 0.5 CPUs on the driver's machine" in str(told.value)
    with pytest.raises(ClusterError, match=r"every machine mounts at the same path$"):
        check_folder_seen(workers[1:], ClusterConfig())
    check_folder_seen([facts("writer", sees=True), facts("rollout-0", sees=False)], ClusterConfig())


def test_the_writers_place_beside_the_driver_is_a_wish(monkeypatch):
    node = "ab" * 28
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: node))
    reserved: Any = Reservation.__new__(Reservation)
    reserved._writer_cpus = 0.2
    place = reserved.writer_options()["scheduling_strategy"]
    assert (place.node_id, place.soft) == (node, True)


ON_A_HEAD_WITHOUT_CPUS = """
import sys
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from minillm_ray.actors.workers import TextSinkActor
from minillm_ray.common.config.run import ClusterConfig
from minillm_ray.common.logs import driver_logs
from minillm_ray.deploy.runtime.placement import Bundle, Reservation

machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
machines.add_node(num_cpus=1)
ray.init(address=machines.address, log_to_driver=False)
with driver_logs(Path(sys.argv[1])):
    bundle = Bundle(name="rollout-0", role="rollout", cpus=0.1, gpus=0.0, threads=1)
    reserved = Reservation([bundle], ClusterConfig(start_timeout_s=60))
    writer = TextSinkActor.options(**reserved.writer_options()).remote("writer", None)
    print(ray.get(writer.ready.remote(), timeout=60).sees_run_dir)
ray.shutdown()
machines.shutdown()
"""


@pytest.mark.ray
@pytest.mark.slow
def test_the_writer_starts_elsewhere_where_the_drivers_machine_offers_no_cpus(tmp_path):
    code = [sys.executable, "-c", ON_A_HEAD_WITHOUT_CPUS, str(tmp_path / "run")]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(code, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.stdout.split() == ["True"], done.stderr
    assert (tmp_path / "run" / "logs" / "writer.jsonl").exists()

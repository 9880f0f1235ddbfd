"""The first slice of a cluster: jobs submitted to a `ray start --head` with token authentication."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from minillm_ray.deploy.config.loader import save_resolved
from minillm_ray.tests.tiny_models import tiny_model
from minillm_ray.tests.tiny_runs import tiny_run, write_questions

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(420), pytest.mark.slow]
BIN = Path(sys.executable).parent
TOKEN = "a" * 64


def free_port() -> int:
    """One that nobody is given by chance until it is used: below those that systems hand out."""
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise RuntimeError("no free port found")


def wait_for(what: Callable[[], Any], seconds: float) -> Any:
    """The first true value of `what`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := what():
            return value
        time.sleep(0.5)
    raise AssertionError(f"{what} did not come true within {seconds} s")


@dataclass(frozen=True)
class Head:
    address: str
    folder: Path
    env: dict[str, str]

    def get(self, path: str) -> Any:
        request = urllib.request.Request(self.address + path, headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def submit(self, run: Path, job: str, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BIN / "ray", "job", "submit", "--address", self.address, "--submission-id", job, *options,
             "--", BIN / "minillm", "train", run],
            env=self.env, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    def actors(self) -> list[dict]:
        return self.get("/api/v0/actors?limit=1000&detail=1")["data"]["result"]["result"]

    def metrics(self) -> str:
        targets = json.loads((self.folder / "prom_metrics_service_discovery.json").read_text())
        pages = []
        for target in targets[0]["targets"]:
            with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as page:
                pages.append(page.read().decode())
        return "".join(pages)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head node of its own, in its own process group and temporary folder, with a token."""
    with TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as name:
        folder, port = Path(name), free_port()
        (folder / "token").write_text(TOKEN)
        env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        process = subprocess.Popen(
            [BIN / "ray", "start", "--head", "--block", "--num-cpus=2", f"--port={free_port()}",
             "--dashboard-host=127.0.0.1", f"--dashboard-port={port}", f"--temp-dir={folder}",
             # Its usual port may be taken by another cluster of this machine, and then no job is accepted.
             f"--dashboard-agent-listen-port={free_port()}", f"--metrics-export-port={free_port()}"],
            env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        found = Head(f"http://127.0.0.1:{port}", folder, env)

        def up() -> bool:
            try:
                return bool(found.get("/api/version"))
            except OSError:
                return False

        try:
            wait_for(up, 60)
            yield found
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def run_file(tmp_path_factory) -> Callable[[str, int], Path]:
    """Writes a tiny run file of so many steps."""
    base = tmp_path_factory.mktemp("job")
    teacher = tiny_model("llama", base / "teacher", seed=1, width=96, tied=False)
    student = tiny_model("llama", base / "student", seed=2, width=64, layers=1)
    questions = write_questions(base / "questions.jsonl")

    def write(name: str, steps: int) -> Path:
        config = tiny_run(teacher, student, questions, base / name, learner={"max_steps": steps})
        save_resolved(config, base / f"{name}-file")
        return base / f"{name}-file" / "config.yaml"

    return write


def test_without_the_token_nothing_is_submitted(head, run_file):
    stranger = Head(head.address, head.folder, head.env | {"RAY_AUTH_TOKEN": "b" * 64})
    refused = stranger.submit(run_file("refused", 4), "refused")
    assert refused.returncode != 0
    assert re.search("nauthor|uthenticat|nvalid", refused.stdout + refused.stderr)


def test_a_submitted_run_succeeds_and_a_person_recognises_it_in_the_dashboard(head, run_file):
    done = head.submit(run_file("short", 8), "short")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "8 optimiser steps" in done.stdout
    names = {actor["name"] for actor in head.actors()}
    assert {"rollout-0", "teacher-0", "learner-0", "learner-1", "writer"} <= names
    assert all(actor["state"] == "DEAD" for actor in head.actors())


def test_our_metrics_are_at_rays_endpoint_and_a_stopped_job_leaves_no_process(head, run_file):
    run = run_file("long", 100_000)
    assert head.submit(run, "long", "--no-wait").returncode == 0
    name = "ray_minillm_learner_reverse_kl"
    ours_only = re.compile(name + r'\{[^}]*run="long"[^}]*\} \d')
    page = wait_for(lambda: ours_only.search(text := head.metrics()) and text, 150)
    assert "ray_minillm_rollout_tokens_per_s" in page
    ours = [actor["pid"] for actor in head.actors() if actor["state"] == "ALIVE"]
    assert len(ours) >= 5
    subprocess.run(
        [BIN / "ray", "job", "stop", "--address", head.address, "long"],
        env=head.env, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    wait_for(lambda: head.get("/api/jobs/long")["status"] == "STOPPED", 60)
    wait_for(lambda: not [pid for pid in ours if Path(f"/proc/{pid}").exists()], 60)

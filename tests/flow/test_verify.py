"""All processes of a run compute the same log-probs, before it learns and after; else it ends."""

from __future__ import annotations

import pytest
from minillm_ray.common.errors import Disagreement
from minillm_ray.deploy.training.launch import start_run
from minillm_ray.deploy.training.verify import as_json, verify_run
from minillm_ray.tests.tiny_runs import tiny_run
from rich.console import Console

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]


def test_engine_teacher_and_ranks_agree_with_transformers_and_with_each_other_after_updates(
    ray_cluster, tiny_pair, questions, tmp_path
):
    teacher, student = tiny_pair
    asked = tiny_run(teacher, student, questions, tmp_path / "out", verify={"referee": True})
    rounds = verify_run(asked, Console(quiet=True))
    assert list(rounds) == ["start", "update 1", "update 2"]
    at_start = {(gap.process, gap.model): gap for gap in rounds["start"]}
    assert set(at_start) == {
        ("rollout-0", "student"),
        ("rollout-0", "teacher"),
        ("teacher-0", "teacher"),
        ("learner-0", "student"),
        ("learner-1", "student"),
    }
    assert {gap.against for gap in at_start.values()} == {"referee"}
    later = {(gap.process, gap.model, gap.against) for gap in rounds["update 2"]}
    assert ("learner-1", "student", "rollout-0") in later
    assert ("teacher-0", "teacher", "referee") in later
    assert all(row["agrees"] and row["largest"] < 1e-4 for row in as_json(rounds))
    assert not (tmp_path / "out").exists()


def test_a_run_stops_before_its_first_step_where_processes_disagree(
    ray_cluster, tiny_pair, questions, tmp_path
):
    teacher, student = tiny_pair
    strict = {"tolerance": 1e-12, "referee": True}  # rounding alone is more
    config = tiny_run(teacher, student, questions, tmp_path / "out", verify=strict)
    with pytest.raises(Disagreement, match=r"rollout-0 \(student\) against referee: .* nats \(in probe/"):
        start_run(config, Console(quiet=True))
    assert not (tmp_path / "out" / "best").exists()

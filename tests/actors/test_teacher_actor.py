"""The Ray shell around the scorer: what it returns, and what it is called."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from minillm_ray.actors.scorer import Scorer
from minillm_ray.actors.workers import TeacherActor
from minillm_ray.common.config.run import ModelConfig, TeacherServerConfig
from minillm_ray.common.process import usable_cores
from minillm_ray.common.types import Passage
from minillm_ray.tests.tiny_models import tiny_model


@pytest.mark.ray
def test_scores_and_summary_come_back_as_two_objects_and_the_head_as_one(ray_cluster, tmp_path):
    import ray

    folder = tiny_model("llama", tmp_path / "teacher")
    given = [
        Passage(
            prompt_id="train/0", prompt_ids=np.array([4, 5], np.int32), answer_ids=np.array([6, 1], np.int32)
        )
    ]
    start = cast(Any, TeacherActor)
    actor = start.options(num_cpus=0.5).remote(
        "teacher-0", ModelConfig(path=str(folder)), TeacherServerConfig(), 128
    )
    get = cast(Any, ray.get)
    facts = get(actor.ready.remote())
    assert (facts.name, facts.threads) == ("teacher-0", usable_cores())  # of the machine on which it runs
    scored, summary = actor.score.options(num_returns=2).remote(
        ray.put(given), 0.7, with_hidden=True, with_logprobs=True
    )
    (result,), sizes = get([scored, summary])
    here = Scorer.load(str(folder), None, TeacherServerConfig(), 128)
    (expected,), _ = here.score(given, temperature=0.7, with_hidden=True)
    assert expected.teacher_logprobs is not None
    assert expected.hidden is not None
    np.testing.assert_allclose(result.teacher_logprobs, expected.teacher_logprobs, atol=1e-6)
    np.testing.assert_allclose(result.hidden, np.asarray(expected.hidden, np.float32), atol=1e-6)
    assert sizes.answer_tokens == (2,)
    np.testing.assert_array_equal(get(actor.head.remote())["weight"], here.head()["weight"])
    ray.kill(actor)

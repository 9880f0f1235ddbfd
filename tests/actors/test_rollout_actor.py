from typing import Any

import numpy as np
import pytest
from minillm_ray.common.config.run import ModelConfig, RolloutConfig
from minillm_ray.common.errors import ModelError
from minillm_ray.common.types import Prompt, SamplingSpec
from minillm_ray.common.weights import WeightBucket, WeightManifest
from minillm_ray.tests.actors.engines import nudge, publish, reference, reference_logits, some_prompts

pytestmark = [pytest.mark.vllm, pytest.mark.ray]

SPEC = SamplingSpec(max_tokens=16, teacher_mix=0.3, samples=2, seed=5)


@pytest.fixture(scope="module")
def actor(ray_cluster, pair):
    import ray
    from minillm_ray.actors.workers import RolloutActor

    handle: Any = RolloutActor.options(num_cpus=0.5).remote(
        "rollout-7",
        ModelConfig(path=str(pair.student)),
        ModelConfig(path=str(pair.teacher)),
        RolloutConfig(kv_cache_gib=0.05),
        vocabulary=128,
        max_tokens=128,
        threads=1,
    )
    yield handle, ray.get(handle.ready.remote())
    ray.kill(handle)


def in_store(manifest, buckets):
    import ray

    moved = tuple(
        WeightBucket(ref=ray.put(buckets[bucket.ref]), tensors=bucket.tensors, checksum=bucket.checksum)
        for bucket in manifest.buckets
    )
    return WeightManifest(version=manifest.version, buckets=moved)


def test_an_actor_draws_loads_and_never_goes_back(actor, pair, engines):
    import ray

    actor, facts = actor
    assert (facts.name, facts.device, facts.threads) == ("rollout-7", "cpu", 1)
    assert facts.start_s > 0
    assert {"python", "torch", "vllm"} == facts.versions.keys()

    prompts = [*some_prompts(), Prompt(id="long", token_ids=np.full(120, 9, np.int32))]
    rollouts_ref, summary_ref = actor.generate.options(num_returns=2).remote(prompts, SPEC)
    summary: Any = ray.get(summary_ref)
    rollouts: Any = ray.get(rollouts_ref)
    assert summary.prompt_ids == tuple(r.prompt_id for r in rollouts)
    assert [d.prompt_id for d in summary.dropped] == ["long"]
    assert {(r.oldest, r.newest) for r in rollouts} == {(0, 0)}
    # The same prompts and seed give the same answers in another process.
    elsewhere = engines.use(pair).call("generate", some_prompts(), SPEC)
    assert [r.answer_ids.tolist() for r in rollouts] == [a.answer_ids.tolist() for a in elsewhere]

    student, checksum = reference(pair.student), ray.get(actor.teacher_checksum.remote())
    for version in (1, 4):
        nudge(student, seed=version)
        manifest = in_store(*publish(student, version))
        actor.prefetch.remote(manifest.version, [manifest.buckets[0].ref])  # the other is fetched by the load
        loaded, seconds = ray.get(actor.load.remote(manifest))
        assert loaded == version
        assert seconds > 0
    rollout = ray.get(actor.generate.options(num_returns=2).remote(prompts[:1], SPEC)[0])[0]
    assert (rollout.oldest, rollout.newest) == (4, 4)
    logits = reference_logits(student, rollout.prompt_ids, rollout.answer_ids)
    want = logits.log_softmax(-1).numpy()[np.arange(len(rollout.answer_ids)), rollout.answer_ids]
    np.testing.assert_allclose(rollout.student_logprobs, want, atol=1e-4)
    assert ray.get(actor.teacher_checksum.remote()) == checksum

    with pytest.raises(ModelError, match="version 4 were offered to an actor that holds version 4"):
        ray.get(actor.load.remote(manifest))

from dataclasses import replace

import numpy as np
import pytest
from minillm_ray.actors.sampler import Drawn, Generates, Sampler
from minillm_ray.common.errors import ModelError
from minillm_ray.common.types import Prompt, Rollout, SamplingSpec, Scored, WeightVersion
from minillm_ray.common.weights import WeightBucket, WeightManifest, checksum

ARRAYS = [np.zeros(1)]


class Echo:
    """Answers with the prompt's tokens backwards, `sample` tokens fewer each time, and checks its input."""

    max_tokens = 12

    def __init__(self):
        self.loaded = []

    def generate(self, prompts, spec):
        for prompt in prompts:
            assert 0 < len(prompt.token_ids) <= self.max_tokens - spec.max_tokens
        return [self.answer(p, n, spec) for p in prompts for n in range(spec.samples)]

    def answer(self, prompt, sample, spec):
        ids = prompt.token_ids[::-1][: spec.max_tokens - sample].astype(np.int32)
        log_q = np.full(len(ids), -1.0, np.float32)
        return Drawn(
            answer_ids=ids,
            behaviour_logprobs=log_q - np.float32(np.log(2)),
            student_logprobs=log_q,
            mixed_teacher_logprobs=log_q - 3 if spec.teacher_mix else None,
            finish="stop" if sample else "length",
            teacher_states=None if spec.states is None else np.zeros((len(ids), 2), spec.states),
        )

    def load(self, manifest, received):
        assert [one.checksum for one in received] == [bucket.checksum for bucket in manifest.buckets]
        self.loaded.append(manifest.version)


def prompt(name: str, tokens: int) -> Prompt:
    return Prompt(id=name, token_ids=np.arange(tokens, dtype=np.int32))


def manifest(version: int) -> WeightManifest:
    bucket = WeightBucket(ref="ref", tensors=(), checksum=checksum(ARRAYS))
    return WeightManifest(version=WeightVersion(version), buckets=(bucket,))


@pytest.fixture
def sampler():
    engine = Echo()
    assert isinstance(engine, Generates)
    return Sampler(engine, fetch=lambda refs: [ARRAYS for _ in refs])


def test_answers_come_prompt_by_prompt_and_sample_by_sample(sampler):
    spec = SamplingSpec(max_tokens=4, samples=2, teacher_mix=0.5)
    rollouts, summary = sampler.generate([prompt("a", 5), prompt("b", 6)], spec)
    assert [(r.prompt_id, r.sample) for r in rollouts] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert [r.answer_ids.tolist() for r in rollouts][:2] == [[4, 3, 2, 1], [4, 3, 2]]
    assert summary.prompt_ids == ("a", "a", "b", "b")
    assert summary.samples == (0, 1, 0, 1)
    assert summary.prompt_tokens == (5, 5, 6, 6)
    assert summary.answer_tokens == (4, 3, 4, 3)


def test_every_rollout_names_the_weights_that_drew_it(sampler):
    spec = SamplingSpec(max_tokens=4)
    assert {(r.oldest, r.newest) for r in sampler.generate([prompt("a", 5)], spec)[0]} == {(0, 0)}
    version, seconds = sampler.load(manifest(3))
    assert version == 3
    assert seconds >= 0
    assert {(r.oldest, r.newest) for r in sampler.generate([prompt("a", 5)], spec)[0]} == {(3, 3)}


@pytest.mark.parametrize("offered", [3, 2, 0])
def test_weights_never_go_back(sampler, offered):
    sampler.load(manifest(3))
    with pytest.raises(ModelError, match=f"version {offered} .* version 3"):
        sampler.load(manifest(offered))
    assert sampler.version == 3


def test_weights_that_are_held_already_are_not_fetched_again():
    fetched = []
    sampler = Sampler(Echo(), fetch=lambda refs: [ARRAYS for ref in refs if not fetched.append(ref)])
    sampler.load(manifest(3))
    assert fetched == ["ref"]
    sampler.prefetch(WeightVersion(3), ["late"])
    assert fetched == ["ref"]
    sampler.prefetch(WeightVersion(4), ["early"])
    assert fetched == ["ref", "early"]


def test_a_prompt_without_room_for_a_whole_answer_is_dropped_with_a_reason(sampler):
    prompts = [prompt("fits", 8), prompt("long", 9), prompt("empty", 0)]
    rollouts, summary = sampler.generate(prompts, SamplingSpec(max_tokens=4))
    assert [r.prompt_id for r in rollouts] == ["fits"]
    assert [(d.prompt_id, d.stage, d.reason) for d in summary.dropped] == [
        ("long", "rollout", "no room for an answer"),
        ("empty", "rollout", "empty prompt"),
    ]
    assert "9 prompt tokens + 4 answer tokens > 12" in summary.dropped[0].detail


def test_a_batch_of_which_nothing_is_left_is_no_error(sampler):
    rollouts, summary = sampler.generate([prompt("long", 50)], SamplingSpec(max_tokens=4))
    assert rollouts == []
    assert len(summary) == 0
    assert [drop.prompt_id for drop in summary.dropped] == ["long"]


def test_a_prompt_that_comes_again_gets_answers_of_its_own(sampler):
    again = replace(prompt("train/0", 2), first_sample=2)
    rollouts, _ = sampler.generate([prompt("train/0", 2), again], SamplingSpec(max_tokens=4, samples=2))
    assert [r.sample for r in rollouts] == [0, 1, 2, 3]


def test_answers_come_scored_where_the_teachers_states_are_asked_for(sampler):
    spec = SamplingSpec(max_tokens=4, teacher_mix=0.5, states="float32")
    (one,), _ = sampler.generate([prompt("a", 5)], spec)
    assert isinstance(one, Scored)
    assert isinstance(one.passage, Rollout)
    assert one.passage.answer_ids.tolist() == [4, 3, 2, 1]
    assert one.teacher_logprobs is one.plain_teacher_logprobs is one.passage.mixed_teacher_logprobs
    assert one.hidden is not None
    assert one.hidden.shape == (4, 2)
    with pytest.raises(AssertionError, match="temperature"):
        sampler.generate([prompt("a", 5)], replace(spec, temperature=0.7))

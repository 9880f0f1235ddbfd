import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from minillm_ray.actors.mixing import Mixture, temper, truncate
from minillm_ray.common.arrays import tensor_of
from minillm_ray.common.errors import ConfigError, ModelError
from minillm_ray.common.heads import final_hidden
from minillm_ray.common.types import Passage, Prompt, SamplingSpec
from minillm_ray.tests.actors.engines import (
    EngineProcess,
    Pair,
    reference,
    reference_logits,
    rows_shared_with_another_kind_of_layer,
    some_prompts,
    threads_of_gloo,
)
from minillm_ray.tests.tiny_models import tiny_model
from scipy import stats

pytestmark = pytest.mark.vllm

SPEC = SamplingSpec(max_tokens=24, teacher_mix=0.2, samples=3, seed=7)


def by_hand(models, mixture, prompt, answer_ids):
    """The three log-probs [3, T] of an answer's tokens from two transformers forwards."""
    student, teacher = (reference_logits(model, prompt.token_ids, answer_ids) for model in models)
    ids = torch.from_numpy(answer_ids).long()[:, None]
    log_q, log_p = temper(student, mixture.temperature), temper(teacher, mixture.temperature)
    q, p = (truncate(rows, mixture.top_p, mixture.top_k).double().exp() for rows in (log_q, log_p))
    mixed = ((1 - mixture.teacher_mix) * q + mixture.teacher_mix * p).log()
    return torch.cat([rows.gather(-1, ids) for rows in (mixed, log_q, log_p)], -1).T.numpy()


@pytest.fixture(scope="module")
def models(pair):
    return reference(pair.student), reference(pair.teacher)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("alpha", [0.0, 0.2, 1.0])
@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, 0), (0.8, 20)])
def test_log_probs_equal_two_transformers_forwards_mixed_by_hand(
    engines, pair, models, alpha, temperature, top_p, top_k
):
    # One engine for all: alpha, temperature and cuts change between its batches.
    mixture = Mixture(teacher_mix=alpha, temperature=temperature, top_p=top_p, top_k=top_k)
    spec = replace(SPEC, teacher_mix=alpha, temperature=temperature, top_p=top_p, top_k=top_k)
    prompts = some_prompts()
    answers = engines.use(pair).call("generate", prompts, spec)
    assert len(answers) == len(prompts) * spec.samples
    for number, answer in enumerate(answers):
        want = by_hand(models, mixture, prompts[number // spec.samples], answer.answer_ids)
        np.testing.assert_allclose(answer.behaviour_logprobs, want[0], atol=1e-4)
        np.testing.assert_allclose(answer.student_logprobs, want[1], atol=1e-4)
        if alpha:
            np.testing.assert_allclose(answer.mixed_teacher_logprobs, want[2], atol=1e-4)
        else:
            assert answer.mixed_teacher_logprobs is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_teachers_states_are_those_of_a_forward_of_transformers(engines, pair, models, dtype):
    prompts = some_prompts()
    answers = engines.use(pair).call("generate", prompts, replace(SPEC, states=dtype))
    for number, answer in enumerate(answers):
        prompt = prompts[number // SPEC.samples].token_ids
        ids = torch.from_numpy(np.concatenate([prompt, answer.answer_ids])).long()[None, :-1]
        with torch.no_grad():
            want = final_hidden(models[1], ids)[0, len(prompt) - 1 :]
        states = tensor_of(answer.teacher_states, dtype)
        assert states.dtype == getattr(torch, dtype)
        torch.testing.assert_close(states, want.to(states.dtype), atol=1e-4, rtol=1e-2)
    plain = engines.use(pair).call("generate", prompts, SPEC)
    assert all(answer.teacher_states is None for answer in plain)


@pytest.mark.parametrize(
    "spec",
    [
        SamplingSpec(max_tokens=2, teacher_mix=0.3, temperature=0.7, samples=6000, ignore_eos=True),
        SamplingSpec(
            max_tokens=2, teacher_mix=0.5, top_p=0.9, top_k=9, samples=6000, ignore_eos=True, seed=1
        ),
    ],
)
def test_sampled_frequencies_are_those_of_the_mixture(engines, tmp_path_factory, spec):
    folder = tmp_path_factory.getbasetemp() / "few-words"
    pair = Pair(folder / "student", folder / "teacher", vocabulary=12)
    if not folder.exists():
        tiny_model("llama", pair.student, seed=3, vocabulary=12)
        tiny_model("llama", folder / "teacher", seed=4, vocabulary=12, width=96, padding=4)
    prompt = Prompt(id="dice", token_ids=np.array([4, 7, 5], np.int32))
    answers = engines.use(pair).call("generate", [prompt], spec)
    found = Counter((int(a.answer_ids[0]), int(a.answer_ids[1])) for a in answers)

    models = (reference(pair.student), reference(folder / "teacher"))
    mixture = Mixture(
        teacher_mix=spec.teacher_mix, temperature=spec.temperature, top_p=spec.top_p, top_k=spec.top_k
    )

    def next_token(context):
        logits = [reference_logits(m, np.array(context), np.array([0]), 12) for m in models]
        return mixture.step(*logits).mass[0].double().numpy()

    start = [4, 7, 5]
    joint = {
        (a, b): p * q for a, p in enumerate(next_token(start)) for b, q in enumerate(next_token([*start, a]))
    }
    assert abs(sum(joint.values()) - 1) < 1e-5
    assert all(joint[pair_of_tokens] > 0 for pair_of_tokens in found)
    common = [key for key, p in joint.items() if p * len(answers) >= 5]
    counts = [found[key] for key in common]
    want = np.array([joint[key] for key in common]) * len(answers)
    rest = len(answers) - sum(counts)
    if len(answers) - want.sum() >= 5:
        counts, want = [*counts, rest], np.append(want, len(answers) - want.sum())
    assert len(counts) > 10
    assert stats.chisquare(counts, want * sum(counts) / want.sum()).pvalue > 0.001


def test_an_answer_depends_on_its_seed_prompt_and_sample_alone(engines, pair):
    engine, prompts = engines.use(pair), some_prompts()
    in_one_batch = [a.answer_ids.tolist() for a in engine.call("generate", prompts, SPEC)]
    again = [a.answer_ids.tolist() for a in engine.call("generate", prompts, SPEC)]
    one_by_one = [
        a.answer_ids.tolist() for p in reversed(prompts) for a in engine.call("generate", [p], SPEC)
    ]
    other = [a.answer_ids.tolist() for a in engine.call("generate", prompts, replace(SPEC, seed=8))]
    assert in_one_batch == again
    assert in_one_batch == [
        answer for p in range(len(prompts), 0, -1) for answer in one_by_one[3 * p - 3 : 3 * p]
    ]
    assert not any(a == b for a, b in zip(in_one_batch, other, strict=True))
    assert len({tuple(answer) for answer in in_one_batch}) == len(in_one_batch)


def test_answers_that_lose_their_place_in_the_cache_go_on_as_if_nothing_had_happened(engines, pair):
    prompts = [Prompt(id=str(n), token_ids=np.arange(5, 30, dtype=np.int32)) for n in range(12)]
    spec = replace(SPEC, samples=1, max_tokens=40, ignore_eos=True)
    roomy, tight = pair, replace(pair, kv_cache_gib=0.0006)
    want, (steps, _) = engines.use(roomy).call("generate", prompts, spec), engines.forwards(prompts, spec)
    got, (more, _) = engines.use(tight).call("generate", prompts, spec), engines.forwards(prompts, spec)
    assert len(more) > len(steps)
    assert sum(more) > sum(steps)
    for one, other in zip(want, got, strict=True):
        assert one.answer_ids.tolist() == other.answer_ids.tolist()
        np.testing.assert_allclose(one.behaviour_logprobs, other.behaviour_logprobs, atol=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_given_answer_is_read_as_if_it_had_been_drawn_and_as_transformers_reads_it(
    engines, pair, models, alpha
):
    engine = engines.use(pair)
    prompts = some_prompts()
    lengths = [1, 17, 5]
    draw = np.random.default_rng(3)
    given = [
        Passage(
            prompt_id=prompt.id,
            prompt_ids=prompt.token_ids,
            answer_ids=draw.integers(0, pair.vocabulary, length).astype(np.int32),
        )
        for prompt, length in zip(prompts, lengths, strict=False)
    ]
    for passage, read in zip(given, engine.call("read", given, alpha), strict=True):
        assert np.array_equal(read.answer_ids, passage.answer_ids)
        prompt = Prompt(id=passage.prompt_id, token_ids=passage.prompt_ids)
        _, log_q, log_p = by_hand(models, Mixture(teacher_mix=alpha), prompt, passage.answer_ids)
        np.testing.assert_allclose(read.student_logprobs, log_q, atol=1e-4)
        if alpha:
            np.testing.assert_allclose(read.mixed_teacher_logprobs, log_p, atol=1e-4)


def test_one_prompt_under_two_ids_gets_two_answers(engines, pair):
    ids = np.arange(5, 15, dtype=np.int32)
    prompts = [Prompt(id=name, token_ids=ids) for name in ("a", "b", "a")]
    one, two, three = engines.use(pair).call("generate", prompts, replace(SPEC, samples=1))
    assert one.answer_ids.tolist() != two.answer_ids.tolist()
    assert one.answer_ids.tolist() == three.answer_ids.tolist()


def test_where_alpha_is_0_the_teacher_does_not_run(engines, pair):
    engine = engines.use(pair)
    student, teacher = engine.forwards(some_prompts(), replace(SPEC, teacher_mix=0.0))
    assert len(student) == SPEC.max_tokens
    assert teacher == []
    student, teacher = engine.forwards(some_prompts(), SPEC)
    assert len(student) == SPEC.max_tokens
    assert student == teacher


def test_the_answers_to_one_prompt_share_its_prefill(engines, pair):
    prompt = Prompt(id="long", token_ids=np.arange(20, 90, dtype=np.int32))
    engine = engines.use(pair)
    engine.call("generate", some_prompts(1), replace(SPEC, teacher_mix=0.0))  # forgets what is cached
    student, teacher = engine.forwards([prompt], replace(SPEC, samples=8))
    assert student[0] == teacher[0] == 70
    assert set(student[1:]) <= set(range(1, 9))


def test_what_prompts_have_in_common_is_computed_once_and_changes_no_log_prob(engines, pair, models):
    # 40 tokens alike: a block of the cache, which vLLM shares, and 8 behind it, which it does not. One
    # prompt begins another. With 64 places for 96 requests, some begin beside others that are under way.
    same = np.arange(60, 100, dtype=np.int32)
    ends = [[], [5], [5, 6], [5, 7, 8], [9] * 12, [10, 11]]
    prompts = [
        Prompt(id=str(number), token_ids=np.concatenate([same, np.array(end, np.int32)]))
        for number, end in enumerate(ends)
    ]
    engine = engines.use(pair)
    engine.call("generate", some_prompts(1), replace(SPEC, teacher_mix=0.0))  # forgets what is cached
    spec = replace(SPEC, samples=16, max_tokens=6)
    student, teacher = engine.forwards(prompts, spec)
    assert student[0] == teacher[0] == 40 + 1 + 1 + 2  # four prompts have a place at first
    answers = engine.call("generate", prompts, spec)
    for number, answer in enumerate(answers):
        want = by_hand(models, Mixture(teacher_mix=0.2), prompts[number // 16], answer.answer_ids)
        got = [answer.behaviour_logprobs, answer.student_logprobs, answer.mixed_teacher_logprobs]
        np.testing.assert_allclose(np.stack(got), want, atol=1e-4)


def test_a_network_that_mixes_tokens_in_another_way_computes_every_row(engines, pair):
    assert engines.use(pair).run(rows_shared_with_another_kind_of_layer) == (True, False)


def test_the_end_of_sequence_token_is_part_of_the_answer_and_scored(engines, pair, models):
    prompts = some_prompts()
    spec = replace(SPEC, samples=20, max_tokens=50)
    answers = engines.use(pair).call("generate", prompts, spec)
    stopped = [(n, a) for n, a in enumerate(answers) if a.finish == "stop"]
    assert len(stopped) > 5
    for _, answer in stopped:
        assert answer.answer_ids[-1] == 1
        assert 1 not in answer.answer_ids[:-1]
        assert len(answer.behaviour_logprobs) == len(answer.answer_ids)
    number, answer = stopped[0]
    mixture = Mixture(teacher_mix=spec.teacher_mix)
    want = by_hand(models, mixture, prompts[number // spec.samples], answer.answer_ids)
    np.testing.assert_allclose(answer.behaviour_logprobs, want[0], atol=1e-4)
    for answer in answers:
        if answer.finish == "length":
            assert len(answer.answer_ids) == 50
            assert 1 not in answer.answer_ids


def test_ignoring_the_end_every_answer_has_full_length(engines, pair):
    spec = replace(SPEC, samples=20, max_tokens=50, ignore_eos=True)
    answers = engines.use(pair).call("generate", some_prompts(), spec)
    assert {len(a.answer_ids) for a in answers} == {50}
    assert any(1 in a.answer_ids for a in answers)


def test_greedy_answers_are_those_of_transformers(engines, pair, models):
    spec = SamplingSpec(max_tokens=16, temperature=0.0, ignore_eos=True)
    prompts = some_prompts()
    for prompt, answer in zip(prompts, engines.use(pair).call("generate", prompts, spec), strict=True):
        logits = reference_logits(models[0], prompt.token_ids, answer.answer_ids)
        assert answer.answer_ids.tolist() == logits.argmax(-1).tolist()
        assert answer.behaviour_logprobs.tolist() == [0.0] * 16
        want = logits.log_softmax(-1).amax(-1).numpy()
        np.testing.assert_allclose(answer.student_logprobs, want, atol=1e-4)


def test_no_token_beyond_the_common_vocabulary_is_drawn(engines, pair, models):
    narrow = replace(pair, vocabulary=40)
    prompts = [Prompt(id="p", token_ids=np.arange(5, 15, dtype=np.int32))]
    spec = replace(SPEC, samples=8, teacher_mix=0.5)
    for answer in engines.use(narrow).call("generate", prompts, spec):
        assert answer.answer_ids.max() < 40
        ids = torch.from_numpy(answer.answer_ids).long()[:, None]
        logits = reference_logits(models[0], prompts[0].token_ids, answer.answer_ids, 40)
        want = logits.log_softmax(-1).gather(-1, ids)[:, 0].numpy()
        np.testing.assert_allclose(answer.student_logprobs, want, atol=1e-4)


def test_without_a_teacher_the_engine_holds_none_and_says_so(engines, pair):
    engine = engines.use(replace(pair, teacher=None))
    answers = engine.call("generate", some_prompts(), replace(SPEC, teacher_mix=0.0))
    assert len(answers) == 15
    assert engine.call("teacher_checksum") is None
    with pytest.raises(ModelError, match=r"teacher_mix = 0\.2, but this engine was built without a teacher"):
        engine.call("generate", some_prompts(), SPEC)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the names of threads from /proc")
@pytest.mark.slow
def test_of_a_dozen_groups_with_one_member_none_is_kept_but_torchs_own(pair):
    # A thread for each would look up a hundred times a second, beside whoever computes. An actor holds one
    # engine in its life; several in one process leave threads of earlier ones.
    own = EngineProcess()
    assert own.use(pair).run(threads_of_gloo) <= 1
    own.close()


def test_models_with_too_few_positions_are_refused(engines, pair, tmp_path):
    short = tiny_model("gpt2", tmp_path / "short")
    config = (short / "config.json").read_text()
    (short / "config.json").write_text(config.replace('"n_positions": 256', '"n_positions": 64'))
    with pytest.raises(ModelError, match=r"up to 128 tokens, but .*short has 64 positions"):
        engines.use(replace(pair, teacher=short))


def test_a_cache_too_small_for_one_answer_is_refused(engines, pair):
    with pytest.raises(ConfigError, match=r"rollout\.kv_cache_gib = 1e-05 is too small"):
        engines.use(replace(pair, kv_cache_gib=1e-5))

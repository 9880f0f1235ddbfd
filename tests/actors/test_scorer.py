"""What the teacher says of an answer is what transformers says of it, however passages are batched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from minillm_ray.actors import scorer as scorer_module
from minillm_ray.actors.scorer import Scorer, batches
from minillm_ray.common import divergence
from minillm_ray.common.config.run import LearnerConfig, ModelConfig, TeacherServerConfig
from minillm_ray.common.errors import DataError, ModelError
from minillm_ray.common.types import Passage, Rollout, Scored, WeightVersion
from minillm_ray.learner.deepspeed_engine import load_student
from minillm_ray.tests.tiny_models import tiny_model
from transformers import AutoModelForCausalLM

VOCABULARY = 120
FAMILIES = ("gpt2", "llama", "qwen2", "opt", "mistral")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("teachers")
    return {f: tiny_model(f, root / f, tied=f != "qwen2", padding=8) for f in FAMILIES}


def passages(count: int, seed: int = 0) -> list[Passage]:
    draw = np.random.default_rng(seed)
    return [
        Passage(
            prompt_id=f"train/{i}",
            prompt_ids=draw.integers(0, VOCABULARY, draw.integers(1, 12)).astype(np.int32),
            answer_ids=draw.integers(0, VOCABULARY, draw.integers(1, 20)).astype(np.int32),
        )
        for i in range(count)
    ]


def by_hand(folder: Path, passage: Passage, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Log-probs and hidden states from a plain forward over one passage, without any batching."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.from_numpy(np.concatenate([passage.prompt_ids, passage.answer_ids])).long()[None]
    with torch.no_grad():
        out = model(ids, output_hidden_states=True)
    logits = out.logits[0, len(passage.prompt_ids) - 1 : -1, :VOCABULARY] / temperature
    answer = torch.from_numpy(passage.answer_ids).long()
    logprobs = logits.log_softmax(-1).gather(1, answer[:, None])[:, 0]
    return logprobs.numpy(), out.hidden_states[-1][0, len(passage.prompt_ids) - 1 : -1].numpy()


def hidden_of(scored: Scored) -> npt.NDArray[Any]:
    assert scored.hidden is not None
    return scored.hidden


def logprobs_of(scored: Scored) -> npt.NDArray[Any]:
    """[2, T]: at the temperature asked for, and at 1."""
    assert scored.teacher_logprobs is not None
    assert scored.plain_teacher_logprobs is not None
    return np.stack([scored.teacher_logprobs, scored.plain_teacher_logprobs])


def load(folder: Path, **settings) -> Scorer:
    return Scorer.load(str(folder), None, TeacherServerConfig(**settings), VOCABULARY)


def one_by_one(folder: Path, **settings) -> Scorer:
    """One whose rows hold a passage each, since its window of attention is shorter than any."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.sliding_window = 1
    return Scorer(model, vocabulary=VOCABULARY, **settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_and_hidden_states_equal_those_of_transformers(folders, family):
    given = passages(6)
    scored, _ = load(folders[family], batch_tokens=64).score(given, temperature=0.7, with_hidden=True)
    for passage, result in zip(given, scored, strict=True):
        assert result.passage is passage
        tempered, hidden = by_hand(folders[family], passage, 0.7)
        plain, _ = by_hand(folders[family], passage, 1.0)
        np.testing.assert_allclose(logprobs_of(result), [tempered, plain], atol=1e-5)
        np.testing.assert_allclose(hidden_of(result), hidden, atol=1e-5)


def test_neither_order_nor_batching_nor_chunking_changes_a_score(folders, monkeypatch):
    given = passages(9, seed=1)
    alone, _ = load(folders["llama"], batch_tokens=1).score(given, temperature=1.3, with_hidden=True)
    monkeypatch.setattr(divergence, "PART_LOGITS", (7 * 50, 7 * 50))
    in_one_batch, _ = load(folders["llama"]).score(given[::-1], temperature=1.3, with_hidden=True)
    for one, other in zip(alone, in_one_batch[::-1], strict=True):
        assert one.passage.prompt_id == other.passage.prompt_id
        np.testing.assert_allclose(logprobs_of(one), logprobs_of(other), atol=1e-5)
        np.testing.assert_allclose(hidden_of(one), hidden_of(other), atol=1e-5)


def test_batches_hold_every_passage_once_within_the_limit():
    lengths = [3, 70, 8, 8, 1, 20, 19, 5]
    groups = list(batches(lengths, 40))
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert [max(lengths[i] for i in g) * len(g) <= 40 or len(g) == 1 for g in groups] == [True] * len(groups)
    assert list(batches([], 40)) == []


def test_passages_that_may_share_rows_stay_in_their_order_in_batches_of_their_sum():
    lengths = [3, 7, 8, 8, 1, 20, 19, 5]
    groups = list(batches(lengths, 40, max_packed_len=20))
    assert [i for group in groups for i in group] == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in group) <= 40 for group in groups)
    assert list(batches(lengths, 40, max_packed_len=19)) == list(batches(lengths, 40))


def test_the_summary_tells_sizes_in_the_passages_order_and_the_padding(folders):
    given = [*passages(2), rollout(passages(3)[2], sample=4)]
    _, summary = one_by_one(folders["llama"]).score(given, temperature=1.0, with_hidden=False)
    assert summary.prompt_ids == ("train/0", "train/1", "train/2")
    assert summary.samples == (0, 0, 4)
    assert summary.answer_tokens == tuple(len(p.answer_ids) for p in given)
    inputs = [len(p.prompt_ids) + len(p.answer_ids) - 1 for p in given]
    slots = 3 * max(inputs)
    assert summary.metrics == {"teacher/padding": (slots - sum(inputs), slots)}


def test_passages_that_share_rows_waste_fewer_slots(folders):
    given = passages(20)
    wasted = []
    for make in (load, one_by_one):
        _, summary = make(folders["llama"], batch_tokens=400).score(given, temperature=1.0, with_hidden=False)
        empty, slots = summary.metrics["teacher/padding"]
        wasted.append(empty / slots)
    assert wasted[0] < 0.1 < wasted[1]


def test_nothing_to_score_is_an_empty_list(folders):
    scored, summary = load(folders["gpt2"]).score([], temperature=1.0, with_hidden=True)
    assert scored == []
    assert len(summary) == 0


def rollout(passage: Passage, sample: int) -> Rollout:
    zeros = np.zeros(len(passage.answer_ids), np.float32)
    return Rollout(
        prompt_id=passage.prompt_id,
        prompt_ids=passage.prompt_ids,
        answer_ids=passage.answer_ids,
        sample=sample,
        behaviour_logprobs=zeros,
        student_logprobs=zeros,
        mixed_teacher_logprobs=None,
        oldest=WeightVersion(0),
        newest=WeightVersion(0),
        finish="stop",
    )


def test_hidden_states_travel_as_bfloat16_bits_and_come_back(folders):
    given = passages(3)
    exact, _ = load(folders["qwen2"]).score(given, temperature=1.0, with_hidden=True)
    short, _ = load(folders["qwen2"], hidden_dtype="bfloat16").score(given, temperature=1.0, with_hidden=True)
    for full, half in zip(exact, short, strict=True):
        assert (hidden_of(half).dtype, half.hidden_dtype) == (np.uint16, "bfloat16")
        back = torch.from_numpy(hidden_of(half).copy()).view(torch.bfloat16)
        assert torch.equal(back, torch.from_numpy(hidden_of(full).copy()).to(torch.bfloat16))


def test_without_need_no_hidden_states_travel(folders):
    scored, _ = load(folders["gpt2"]).score(passages(2), temperature=1.0, with_hidden=False)
    assert [s.hidden for s in scored] == [None, None]


def test_without_need_the_output_layer_is_not_multiplied(folders, monkeypatch):
    given = passages(3)
    whole, _ = load(folders["llama"]).score(given, temperature=0.7, with_hidden=True)
    monkeypatch.delattr(scorer_module, "drawn_logprobs")
    bare, _ = load(folders["llama"]).score(given, temperature=0.7, with_hidden=True, with_logprobs=False)
    for one, other in zip(bare, whole, strict=True):
        assert one.teacher_logprobs is one.plain_teacher_logprobs is None
        np.testing.assert_array_equal(hidden_of(one), hidden_of(other))


def test_a_block_of_text_is_a_passage_with_a_prompt_of_one_token(folders):
    ids = np.arange(5, 37, dtype=np.int32)
    block = Passage(prompt_id="text/0", prompt_ids=ids[:1], answer_ids=ids[1:])
    scored, _ = load(folders["llama"]).score([block], temperature=1.0, with_hidden=True)
    expected, _ = by_hand(folders["llama"], block, 1.0)
    np.testing.assert_allclose(logprobs_of(scored[0])[1], expected, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_applied_to_the_hidden_states_gives_the_log_probs(folders, family):
    teacher = load(folders[family])
    scored, _ = teacher.score(passages(1), temperature=1.0, with_hidden=True)
    head = teacher.head()
    assert head["weight"].shape[0] == head["vocabulary"] == VOCABULARY
    logits = torch.from_numpy(hidden_of(scored[0])) @ torch.from_numpy(head["weight"]).T
    answer = torch.from_numpy(scored[0].passage.answer_ids).long()
    logprobs = logits.log_softmax(-1).gather(1, answer[:, None])[:, 0]
    np.testing.assert_allclose(logprobs.numpy(), logprobs_of(scored[0])[0], atol=1e-5)


def test_a_head_in_bfloat16_travels_as_bits(folders):
    head = load(folders["llama"], dtype="bfloat16").head()
    assert (head["weight"].dtype, head["dtype"]) == (np.uint16, "bfloat16")


def test_a_token_outside_the_shared_vocabulary_is_refused_by_name(folders):
    odd = Passage(
        prompt_id="train/7", prompt_ids=np.array([1], np.int32), answer_ids=np.array([125], np.int32)
    )
    with pytest.raises(DataError, match=r"train/7: token id 125 lies outside the 120 words"):
        load(folders["gpt2"]).score([odd], temperature=1.0, with_hidden=False)


def test_a_passage_beyond_the_teachers_context_is_refused_by_name(folders):
    long = Passage(prompt_id="train/8", prompt_ids=np.ones(200, np.int32), answer_ids=np.ones(100, np.int32))
    with pytest.raises(DataError, match=r"train/8: 299 tokens do not fit into the teacher's context of 256"):
        load(folders["gpt2"]).score([long], temperature=1.0, with_hidden=False)


def test_a_teacher_that_is_not_there_is_a_model_error(tmp_path):
    with pytest.raises(ModelError, match=r"teacher\.path = .*nothing cannot be loaded"):
        load(tmp_path / "nothing")


def test_states_from_elsewhere_are_held_against_the_teachers_own(folders):
    scorer = load(folders["llama"], hidden_dtype="bfloat16")
    (own,), _ = scorer.score(passages(1), temperature=1.0, with_hidden=True)
    assert scorer.states_gap(own) < 1e-6
    (others,), _ = load(folders["qwen2"]).score(passages(1), temperature=1.0, with_hidden=True)
    assert scorer.states_gap(others) > 0.1
    assert scorer.states_gap(replace(own, teacher_logprobs=logprobs_of(own)[0] - 0.5)) > 0.4


def test_a_cap_on_scores_of_attention_is_kept(tmp_path):
    # torch's own attention has none, and transformers leaves the cap out there without a word.
    folder = tiny_model("gemma2", tmp_path / "capped", settings={"attn_logit_softcapping": 0.5})
    given = passages(4)
    scored, _ = load(folder).score(given, temperature=1.0, with_hidden=False)
    student = load_student(ModelConfig(path=str(folder)), LearnerConfig(), dropout=False)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    for passage, result in zip(given, scored, strict=True):
        ids = torch.from_numpy(np.concatenate([passage.prompt_ids, passage.answer_ids])).long()[None]
        with torch.no_grad():
            want, learned = (one(ids).logits[0, len(passage.prompt_ids) - 1 : -1] for one in (model, student))
        torch.testing.assert_close(learned, want, atol=1e-5, rtol=1e-5)
        logprobs = (
            want[:, :VOCABULARY].log_softmax(-1).gather(1, ids[0, len(passage.prompt_ids) :, None])[:, 0]
        )
        np.testing.assert_allclose(logprobs_of(result)[1], logprobs.numpy(), atol=1e-5)

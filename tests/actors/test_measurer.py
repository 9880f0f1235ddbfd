"""Exact figures of one model and a teacher equal those of plain forward passes of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from minillm_ray.actors.measurer import Measurer
from minillm_ray.actors.workers import MeasurerActor
from minillm_ray.common.config.run import ModelConfig, TeacherServerConfig
from minillm_ray.common.errors import DataError
from minillm_ray.common.types import Passage, Prompt
from minillm_ray.deploy.evaluation.exposure import Divergences, exposure_bias
from minillm_ray.tests.tiny_models import tiny_model
from transformers import AutoModelForCausalLM

VOCABULARY = 120
FAMILIES = ("gpt2", "llama", "qwen2")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("measured")
    made = {f: tiny_model(f, root / f, seed=3, padding=8) for f in FAMILIES}
    return made | {"teacher": tiny_model("llama", root / "teacher", seed=4, width=96, tied=False)}


def measurer(folders: dict[str, Path], family: str, *, batch_tokens: int = 64) -> Measurer:
    return Measurer.load(
        ModelConfig(path=str(folders[family])),
        ModelConfig(path=str(folders["teacher"])),
        TeacherServerConfig(batch_tokens=batch_tokens),
        VOCABULARY,
    )


def passages(count: int) -> list[Passage]:
    draw = np.random.default_rng(0)
    return [
        Passage(
            prompt_id=f"x/{i}",
            prompt_ids=draw.integers(0, VOCABULARY, draw.integers(1, 12)).astype(np.int32),
            answer_ids=draw.integers(0, VOCABULARY, draw.integers(1, 20)).astype(np.int32),
        )
        for i in range(count)
    ]


def rows_by_hand(folder: Path, prompt: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """Log-probs [T, V] over the shared vocabulary."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.from_numpy(np.concatenate([prompt, answer])).long()[None]
    with torch.no_grad():
        logits = model(ids).logits[0, len(prompt) - 1 : -1, :VOCABULARY]
    return logits.log_softmax(-1).double().numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_figure_equals_that_of_whole_distributions(folders, family):
    given = passages(5)
    found, summary = measurer(folders, family).measure(given)
    assert summary.answer_tokens == tuple(len(p.answer_ids) for p in given)
    for passage, measure in zip(given, found, strict=True):
        assert measure.prompt_id == passage.prompt_id
        log_q = rows_by_hand(folders[family], passage.prompt_ids, passage.answer_ids)
        log_p = rows_by_hand(folders["teacher"], passage.prompt_ids, passage.answer_ids)
        at = np.arange(len(passage.answer_ids)), passage.answer_ids
        expected = {
            "logprobs": log_q[at],
            "teacher_logprobs": log_p[at],
            "forward_kl": (np.exp(log_p) * (log_p - log_q)).sum(1),
            "reverse_kl": (np.exp(log_q) * (log_q - log_p)).sum(1),
        }
        for name, values in expected.items():
            np.testing.assert_allclose(getattr(measure, name), values, atol=2e-5, err_msg=name)


def test_without_a_comparison_only_log_probs_are_measured(folders):
    (measure,), _ = measurer(folders, "llama").measure(passages(1), compare=False)
    assert measure.forward_kl is None
    assert measure.teacher_logprobs is None
    assert len(measure.logprobs) == len(passages(1)[0].answer_ids)


def test_batching_changes_no_figure(folders):
    alone, _ = measurer(folders, "llama", batch_tokens=1).measure(passages(6))
    in_one_batch, _ = measurer(folders, "llama", batch_tokens=4096).measure(passages(6))
    for one, other in zip(alone, in_one_batch, strict=True):
        assert one.forward_kl is not None
        assert other.forward_kl is not None
        np.testing.assert_allclose(one.forward_kl, other.forward_kl, atol=1e-5)


@pytest.mark.parametrize("labels", [[[40], [50]], [[40, 41], [50]]], ids=["one token", "several tokens"])
def test_labels_have_the_probability_of_their_tokens_behind_the_prompt(folders, labels):
    prompts = [Prompt(id=p.prompt_id, token_ids=p.prompt_ids) for p in passages(4)]
    words = [np.array(label, np.int32) for label in labels]
    found, summary = measurer(folders, "llama").choose(prompts, words)
    assert len(summary) == 4
    for prompt, choice in zip(prompts, found, strict=True):
        by_hand = [
            rows_by_hand(folders["llama"], prompt.token_ids, word)[np.arange(len(word)), word].sum()
            for word in words
        ]
        np.testing.assert_allclose(choice.logprobs, by_hand, atol=2e-5)


def test_what_cannot_be_read_is_named(folders):
    long = Passage(prompt_id="x/7", prompt_ids=np.ones(250, np.int32), answer_ids=np.ones(20, np.int32))
    with pytest.raises(DataError, match="x/7: 269 tokens do not fit into the model's context of 256"):
        measurer(folders, "llama").measure([long])


def test_sampled_answers_come_near_the_exact_exposure_bias(folders):
    """At l = 2, where E over the first token is a sum over the vocabulary."""
    prompt, walker = np.array([5, 6], np.int32), measurer(folders, "qwen2", batch_tokens=8192)
    every = np.arange(VOCABULARY)
    log_q, log_p = (
        rows_by_hand(folders[name], prompt, np.array([0], np.int32))[0] for name in ("qwen2", "teacher")
    )

    def divergences(firsts: np.ndarray) -> list[np.ndarray]:
        given = [
            Passage(prompt_id="x/0", prompt_ids=prompt, answer_ids=np.array([first, 0], np.int32))
            for first in firsts
        ]
        return [np.asarray(m.forward_kl) for m in walker.measure(given)[0]]

    exact = np.array(divergences(every))
    accumulated, ideal = ((np.exp(rows) @ exact).sum() for rows in (log_q, log_p))
    draw = np.random.default_rng(0)
    sides = []
    for rows in (log_q, log_p):
        firsts = draw.choice(VOCABULARY, size=20_000, p=np.exp(rows) / np.exp(rows).sum())
        sides.append([Divergences(prompt_id="x/0", kl=exact[first]) for first in firsts])
    found = exposure_bias(*sides, draws=2)
    assert found.accumulated.value[1] == pytest.approx(accumulated, rel=0.01)
    assert found.excess.value[1] == pytest.approx(100 * (accumulated - ideal) / ideal, abs=1.0)


@pytest.mark.ray
def test_the_actor_returns_figures_and_sizes_as_two_objects(ray_cluster, folders):
    import ray

    start, get, given = cast(Any, MeasurerActor), cast(Any, ray.get), passages(2)
    models = [ModelConfig(path=str(folders[name])) for name in ("llama", "teacher")]
    actor = start.options(num_cpus=0.5).remote("measurer-0", *models, TeacherServerConfig(), VOCABULARY, 1)
    assert get(actor.ready.remote()).name == "measurer-0"
    found, sizes = get(list(actor.measure.options(num_returns=2).remote(given, True)))
    expected, _ = measurer(folders, "llama").measure(given)
    np.testing.assert_allclose(found[0].reverse_kl, np.asarray(expected[0].reverse_kl), atol=1e-5)
    assert sizes.prompt_ids == ("x/0", "x/1")
    ray.kill(actor)

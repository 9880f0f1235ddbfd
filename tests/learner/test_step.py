"""One optimiser step on an engine that is nothing but torch, against loss and gradient by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from minillm_ray.common.config.objective import ObjectiveConfig
from minillm_ray.common.errors import NonFiniteLoss
from minillm_ray.common.heads import Head, read_head
from minillm_ray.common.metrics import CATALOGUE
from minillm_ray.common.packed_attention import enable_packing, read
from minillm_ray.common.types import Passage, Rollout, Scored
from minillm_ray.learner.batching import Batch, batch_of
from minillm_ray.learner.engine import Result, TrainEngine
from minillm_ray.learner.measure import measure
from minillm_ray.learner.rank import head_of
from minillm_ray.learner.sharding import Item, shard_batch, shard_step
from minillm_ray.learner.step import StepRules, StepRunner
from minillm_ray.tests.learner.scenes import (
    MAX_NEW_TOKENS,
    VOCABULARY,
    Scene,
    all_logprobs,
    items_of,
    logprobs,
    model_of,
    score,
)
from torch import Tensor

CPU = torch.device("cpu")


class PlainEngine:
    """What a step asks of a TrainEngine: one rank and its student; the optimiser only tells the norm."""

    def __init__(self, scene: Scene, *, max_packed_len: int = 1000):
        self.device, self.student = CPU, model_of(scene.student)
        self._head = read_head(self.student, VOCABULARY)
        self.steps, self.modes = 0, []
        assert not max_packed_len or enable_packing(self.student) >= max_packed_len
        self.max_packed_len = max_packed_len

    def run(self, batch: Batch, use: Callable[[Tensor, Head], Result], *, train: bool) -> Result:
        self.modes.append(train)
        with torch.set_grad_enabled(train):
            hidden = read(self.student, batch.ids, batch.layout)
            return use(hidden.flatten(0, 1)[batch.positions], self._head)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> float:
        gradients = [p.grad for p in self.student.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        self.steps += np.isfinite(norm)
        return norm

    def rate(self) -> float:
        return 0.25

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        return list(values)

    def all_gather(self, value: Any) -> list[Any]:
        return [value]


def step(
    scene: Scene,
    objective: ObjectiveConfig,
    samples: Sequence[Scored | Passage],
    texts: Sequence[Scored | Passage] = (),
    *,
    micro_batch_size: int = 3,
    engine: PlainEngine | None = None,
    fresh: bool = False,
    first_epoch: bool = False,
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Means of all metrics, and the gradient of every parameter."""
    engine = engine or PlainEngine(scene)
    rules = StepRules(objective=objective, temperature=1.0, max_new_tokens=MAX_NEW_TOKENS, chunk_tokens=5)
    runner = StepRunner(cast(TrainEngine, engine), rules, head_of(scene.head, VOCABULARY, CPU))
    (rank_batch,) = shard_step(
        items_of("answers", samples),
        items_of("texts", texts),
        world_size=1,
        micro_batch_size=micro_batch_size,
    )

    def load(item: Item) -> Scored | Passage:
        return (samples if item.chunk == "answers" else texts)[item.position]

    metrics = runner.step(rank_batch, load, fresh=fresh, first_epoch=first_epoch)
    assert metrics.keys() <= CATALOGUE.keys()
    gradients = {n: p.grad.clone() for n, p in engine.student.named_parameters() if p.grad is not None}
    return {name: total / count for name, (total, count) in metrics.items()}, gradients


def gradient_of(loss: Callable[[Any], Tensor], scene: Scene) -> tuple[float, dict[str, Tensor]]:
    """A loss of the student, and its gradient, by autograd alone."""
    student = model_of(scene.student)
    value = loss(student)
    value.backward()
    return value.item(), {n: p.grad for n, p in student.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, Tensor], want: dict[str, Tensor], within: float = 3e-6) -> None:
    assert found.keys() == want.keys()
    for name in want:
        assert (found[name] - want[name]).abs().max() < within * max(1.0, want[name].abs().max().item()), name


OBJECTIVES = {
    "paper, tokens": ObjectiveConfig(),
    "paper, sequences": ObjectiveConfig(reduction="sequences"),
    "reference": ObjectiveConfig(preset="reference"),
    "exact": ObjectiveConfig(
        importance_weight="per_decision", single_step_weight="per_decision", length_norm=False, clip="none"
    ),
    "long term alone": ObjectiveConfig(single_step=False),
    "forward KL": ObjectiveConfig(kind="kd"),
    "jsd, with its own cross-entropy": ObjectiveConfig(kind="kd", divergence="jsd", lm_share=0.5),
    "atkd": ObjectiveConfig(kind="kd", divergence="atkd"),
    "language model": ObjectiveConfig(kind="sft", reduction="sequences"),
}


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_the_size_of_micro_batches_changes_nothing(scene: Scene, objective: ObjectiveConfig) -> None:
    values, want = step(scene, objective, scene.samples, scene.texts, micro_batch_size=8)
    for micro_batch_size in (1, 3):
        found, gradient = step(
            scene, objective, scene.samples, scene.texts, micro_batch_size=micro_batch_size
        )
        assert found == pytest.approx(values, rel=1e-5)
        assert_same(gradient, want)


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_answers_that_share_rows_teach_what_padded_ones_do(scene: Scene, objective: ObjectiveConfig) -> None:
    batch = batch_of(scene.samples, CPU, hidden=False, max_packed_len=1000)
    assert batch.layout is not None
    assert len(batch.ids) < len(scene.samples)
    padded = PlainEngine(scene, max_packed_len=0)
    values, want = step(scene, objective, scene.samples, scene.texts, micro_batch_size=8, engine=padded)
    found, gradient = step(scene, objective, scene.samples, scene.texts, micro_batch_size=8)
    assert found == pytest.approx(values, rel=1e-5)
    assert_same(gradient, want)


def test_answers_to_one_prompt_read_it_once_and_teach_what_padded_ones_do(scene: Scene) -> None:
    networks = model_of(scene.student), model_of(scene.teacher)
    prompt = np.arange(3, 12, dtype=np.int32)
    passages = [replace(sample.passage, prompt_ids=prompt) for sample in scene.samples]
    samples = [score(passage, *networks) for passage in passages]
    batch = batch_of(samples, CPU, hidden=False, max_packed_len=1000)
    assert batch.ids.numel() < sum(len(prompt) + len(p.answer_ids) for p in passages) - len(prompt)
    assert (batch.positions == batch.positions[0]).sum() > 1, "several answers begin behind one slot"
    padded = PlainEngine(scene, max_packed_len=0)
    values, want = step(scene, ObjectiveConfig(), samples, micro_batch_size=8, engine=padded)
    found, gradient = step(scene, ObjectiveConfig(), samples, micro_batch_size=8)
    assert found == pytest.approx(values, rel=1e-5)
    assert_same(gradient, want)


@pytest.mark.parametrize("reduction", ["tokens", "sequences"])
def test_given_answers_are_learned_by_their_cross_entropy(scene: Scene, reduction: Any) -> None:
    passages = [sample.passage for sample in scene.samples]
    tokens = sum(len(p.answer_ids) for p in passages)
    divisor = tokens if reduction == "tokens" else len(passages)
    value, want = gradient_of(lambda s: -torch.cat([logprobs(s, p) for p in passages]).sum() / divisor, scene)
    found, gradient = step(scene, ObjectiveConfig(kind="sft", reduction=reduction), passages)
    assert_same(gradient, want)
    assert found["learner/loss"] == pytest.approx(value, rel=1e-5)
    assert found["learner/answer_nll"] == pytest.approx(value * divisor / tokens, rel=1e-5)


def test_forward_kl_is_the_exact_sum_over_the_vocabulary(scene: Scene) -> None:
    teacher, tokens = model_of(scene.teacher), sum(len(s.passage.answer_ids) for s in scene.samples)

    def loss(student: Any) -> Tensor:
        total = torch.zeros(())
        for sample in scene.samples:
            log_p = all_logprobs(teacher, sample.passage).detach()
            total = total + (log_p.exp() * (log_p - all_logprobs(student, sample.passage))).sum()
        return total / tokens

    value, want = gradient_of(loss, scene)
    found, gradient = step(scene, ObjectiveConfig(kind="kd"), scene.samples)
    assert_same(gradient, want)
    assert found["learner/forward_kl"] == pytest.approx(value, rel=1e-5)


def test_atkd_takes_sampled_tokens_as_gold_and_the_median_over_the_step(scene: Scene) -> None:
    teacher = model_of(scene.teacher)
    doubt = torch.cat([1 - logprobs(teacher, s.passage).detach().exp() for s in scene.samples])
    hard = (
        doubt >= doubt.double().median() if len(doubt) % 2 else doubt > doubt.sort()[0][len(doubt) // 2 - 1]
    )

    def loss(student: Any) -> Tensor:
        parts = []
        for sample in scene.samples:
            log_p, log_q = (all_logprobs(m, sample.passage) for m in (teacher, student))
            log_p = log_p.detach()
            gold = torch.from_numpy(sample.passage.answer_ids.astype(np.int64))[:, None]
            others = torch.ones_like(log_p, dtype=torch.bool).scatter_(1, gold, False)
            p, q = log_p.exp(), log_q.exp()
            rest_p, rest_q = ((x * others).sum(-1, keepdim=True) for x in (p, q))
            among = (others * (p / rest_p) * (log_p - rest_p.log() - log_q + rest_q.log())).sum(-1)
            both = [(x.gather(1, gold)[:, 0], rest[:, 0]) for x, rest in ((p, rest_p), (q, rest_q))]
            binary = sum(a * (a / b).log() for a, b in zip(*both, strict=True))
            parts.append(torch.stack([among, among + binary]))
        easy_value, hard_value = torch.cat(parts, dim=1)
        return 0.2 * easy_value[~hard].mean() + 0.8 * hard_value[hard].mean()

    value, want = gradient_of(loss, scene)
    found, gradient = step(
        scene, ObjectiveConfig(kind="kd", divergence="atkd"), scene.samples, micro_batch_size=3
    )
    assert found["learner/loss"] == pytest.approx(value, rel=1e-5)
    assert_same(gradient, want)


@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_the_language_model_term_is_added_with_its_coefficient_and_its_own_count(
    scene: Scene, fraction: float
) -> None:
    teacher = model_of(scene.teacher)
    texts, tokens = [t.passage for t in scene.texts], sum(len(t.passage.answer_ids) for t in scene.texts)

    def text_loss(student: Any) -> Tensor:
        total = torch.zeros(())
        for text in texts:
            p = all_logprobs(teacher, text).detach().exp()
            soft = -(p * all_logprobs(student, text)).sum()
            total = total + fraction * soft - (1 - fraction) * logprobs(student, text).sum()
        return total / tokens

    objective = ObjectiveConfig(lm_coef=0.3, text_teacher_share=fraction)
    alone, answers = step(scene, objective, scene.samples)
    value, by_text = gradient_of(lambda student: 0.3 * text_loss(student), scene)
    found, gradient = step(scene, objective, scene.samples, scene.texts if fraction else texts)
    assert_same(gradient, {name: answers[name] + by_text[name] for name in answers})
    assert found["learner/text_loss"] == pytest.approx(value / 0.3, rel=1e-5)
    assert found["learner/loss"] == pytest.approx(alone["learner/loss"] + value, rel=1e-5)


def test_the_single_step_term_is_the_exact_reverse_kl(scene: Scene) -> None:
    student, teacher = model_of(scene.student), model_of(scene.teacher)
    total, shared, tokens = 0.0, 0.0, 0
    with torch.no_grad():
        for sample in scene.samples:
            log_q, log_p = (all_logprobs(m, sample.passage) for m in (student, teacher))
            total += (log_q.exp() * (log_q - log_p)).sum().item()
            shared += torch.minimum(log_q, log_p).exp().sum().item()
            tokens += len(log_q)
    values, _ = step(scene, ObjectiveConfig(), scene.samples, fresh=True)
    assert values["learner/reverse_kl"] == pytest.approx(total / tokens, rel=1e-5)
    assert values["learner/overlap"] == pytest.approx(shared / tokens, rel=1e-5)


def test_the_engine_gap_shows_another_student_and_only_on_fresh_answers(scene: Scene) -> None:
    objective = ObjectiveConfig()
    values, _ = step(scene, objective, scene.samples, fresh=True, first_epoch=True)
    assert values["learner/engine_gap"] < 1e-6
    assert values["learner/clip_fraction_first"] == values["learner/clip_fraction"]
    moved = []
    for sample in scene.samples:
        assert isinstance(sample.passage, Rollout)
        shifted = replace(sample.passage, student_logprobs=sample.passage.student_logprobs - 0.25)
        moved.append(replace(sample, passage=shifted))
    values, _ = step(scene, objective, moved, fresh=True)
    assert values["learner/engine_gap"] == pytest.approx(0.25, abs=1e-5)
    values, _ = step(scene, objective, moved)
    assert not values.keys() & {"learner/engine_gap", "learner/overlap", "learner/clip_fraction_first"}


def test_per_decision_weights_look_at_the_student_as_it_is(scene: Scene) -> None:
    engine = PlainEngine(scene)
    step(scene, OBJECTIVES["exact"], scene.samples, engine=engine)
    assert engine.modes == [False, True] * 3


def test_rate_and_norm_are_told(scene: Scene) -> None:
    values, gradient = step(scene, ObjectiveConfig(), scene.samples)
    norm = torch.stack([g.square().sum() for g in gradient.values()]).sum().sqrt().item()
    assert values["learner/grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert values["learner/lr"] == 0.25


def test_a_gradient_that_is_not_finite_names_the_answers_of_the_step(scene: Scene) -> None:
    engine = PlainEngine(scene)
    next(engine.student.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteLoss, match=r"gradient.*p/\d#0"):
        step(scene, ObjectiveConfig(), scene.samples, engine=engine)
    assert engine.steps == 0


def test_measuring_gives_each_answers_own_sums(scene: Scene) -> None:
    engine = PlainEngine(scene)
    (rank_items,) = shard_batch(items_of("answers", scene.samples), world_size=1, micro_batch_size=3)
    head = head_of(scene.head, VOCABULARY, CPU)
    found = measure(
        cast(TrainEngine, engine),
        rank_items,
        lambda item: scene.samples[item.position],
        teacher=head,
        temperature=1.0,
        chunk_tokens=5,
    )
    student, teacher = model_of(scene.student), model_of(scene.teacher)
    for index, record in zip(rank_items.order, found, strict=True):
        passage = scene.samples[index].passage
        with torch.no_grad():
            log_q, log_p = all_logprobs(student, passage), all_logprobs(teacher, passage)
        assert (record.prompt_id, record.sample) == (passage.prompt_id, 0)
        assert record.tokens == len(log_q)
        assert record.reverse_kl == pytest.approx((log_q.exp() * (log_q - log_p)).sum().item(), rel=1e-4)
        assert record.forward_kl == pytest.approx((log_p.exp() * (log_p - log_q)).sum().item(), rel=1e-4)
        assert record.entropy == pytest.approx(-(log_q.exp() * log_q).sum().item(), rel=1e-4)
        assert record.nll == pytest.approx(-logprobs(student, passage).sum().item(), rel=1e-4)
    assert not any(engine.modes)


def test_measuring_without_a_teacher_leaves_the_divergences_out(scene: Scene) -> None:
    passages = [sample.passage for sample in scene.samples]
    (rank_items,) = shard_batch(items_of("answers", passages), world_size=1, micro_batch_size=8)
    (first, *_) = measure(
        cast(TrainEngine, PlainEngine(scene)),
        rank_items,
        lambda item: passages[item.position],
        teacher=None,
        temperature=1.0,
        chunk_tokens=5,
    )
    assert first.nll > 0
    assert first.entropy > 0
    assert first.reverse_kl is first.forward_kl is first.overlap is None

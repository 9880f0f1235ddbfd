"""The real engine, at every ZeRO stage, against plain autograd."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from minillm_ray.common.config.objective import ObjectiveConfig
from minillm_ray.common.config.run import LearnerConfig, ModelConfig, RunConfig
from minillm_ray.common.types import Rollout
from minillm_ray.learner.batching import pad_answers
from minillm_ray.learner.deepspeed_engine import load_student
from minillm_ray.learner.objective import advantage_moments, token_constants, token_loss
from minillm_ray.tests.learner.scenes import (
    MAX_NEW_TOKENS,
    Scene,
    all_logprobs,
    make_scene,
    model_of,
    run_config,
)
from minillm_ray.tests.learner.worlds import (
    World,
    meet_a_bad_answer,
    step_on_infinity,
    step_on_the_body_alone,
    train,
    train_in_halves,
)
from minillm_ray.tests.tiny_models import tiny_model

pytestmark = pytest.mark.ray
SGD = {"name": "sgd", "lr": 64.0, "betas": (0.0, 0.0), "weight_decay": 0.0}
PLAIN: dict[str, Any] = {"optimizer": SGD, "max_grad_norm": 0.0}
"""The weights move by the gradient and nothing else, far enough that their rounding does not hide it."""
LIMIT = 1e-5
STAGES = (0, 1, 2, 3)


def largest(gradient: dict[str, torch.Tensor]) -> float:
    """The largest entry of a whole gradient."""
    return max(float(part.abs().max()) for part in gradient.values())


def plain_gradient(scene: Scene, objective: ObjectiveConfig) -> dict[str, torch.Tensor]:
    """All answers and texts one by one, whole logits, no padding, no chunks: what any split must equal."""
    student, teacher = model_of(scene.student), model_of(scene.teacher)
    answers = pad_answers(scene.samples, torch.device("cpu"), "sampling")
    statistics = advantage_moments(answers, objective, MAX_NEW_TOKENS)
    constants = token_constants(answers, objective, statistics)
    by_sequence = objective.reduction == "sequences"
    divisor = len(scene.samples) if by_sequence else int(answers.lengths.sum())
    for row, sample in enumerate(scene.samples):
        own = torch.zeros_like(answers.mask)
        own[row] = answers.mask[row]
        log_q = all_logprobs(student, sample.passage)
        log_p = all_logprobs(teacher, sample.passage).detach()
        drawn = torch.from_numpy(sample.passage.answer_ids.astype(np.int64))[:, None]
        kl = (log_q.exp() * (log_q - log_p)).sum(-1)
        loss, _ = token_loss(kl, log_q.gather(1, drawn)[:, 0], constants[own], objective)
        (loss.sum() / divisor).backward()
    lengths = [len(text.passage.answer_ids) for text in scene.texts]
    divisor = len(lengths) if by_sequence else sum(lengths)
    for text in scene.texts:
        log_q = all_logprobs(student, text.passage)
        p = all_logprobs(teacher, text.passage).detach().exp()
        drawn = torch.from_numpy(text.passage.answer_ids.astype(np.int64))[:, None]
        fraction = objective.text_teacher_share
        loss = -(1 - fraction) * log_q.gather(1, drawn).sum() - fraction * (p * log_q).sum()
        (objective.lm_coef * loss / divisor).backward()
    return {name: p.grad for name, p in student.named_parameters() if p.grad is not None}


OBJECTIVES = {
    "tokens": ObjectiveConfig(reduction="tokens", lm_coef=0.5),
    "sequences": ObjectiveConfig(reduction="sequences"),
    "whitened": ObjectiveConfig(preset="reference", reduction="tokens"),
}


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_any_split_into_ranks_and_micro_batches_gives_the_gradient_of_one_big_batch(
    worlds: dict[int, World], scene: Scene, objective: ObjectiveConfig
) -> None:
    start, want = dict(model_of(scene.student).named_parameters()), plain_gradient(scene, objective)
    for stage in STAGES:
        for size, micro_batch_size in ((1, 8), (1, 3), (2, 1), (2, 3)):
            config = run_config(
                scene,
                objective=objective,
                **PLAIN,
                world_size=size,
                zero_stage=stage,
                micro_batch_size=micro_batch_size,
            )
            for _, weights in worlds[size].run(train, config, scene, 1):
                for name, gradient in want.items():
                    moved = (start[name].detach() - torch.tensor(weights[name])) / SGD["lr"]
                    off = (moved - gradient).abs().max()
                    assert off <= LIMIT * largest(want), (stage, size, micro_batch_size, name)


@pytest.mark.parametrize(
    ("family", "tied", "padding"),
    [
        ("gpt2", True, 0),
        ("gpt2", False, 0),
        ("llama", False, 0),
        ("qwen2", True, 16),
        ("qwen2", False, 16),
        ("opt", True, 0),
        ("mistral", False, 0),
    ],
)
def test_one_rank_by_itself_and_two_under_zero_3_give_each_familys_plain_gradient(
    worlds: dict[int, World], tmp_path: Path, family: str, tied: bool, padding: int
) -> None:
    scene = make_scene(tmp_path, family, tied=tied, padding=padding)
    objective = OBJECTIVES["tokens"]
    start, want = dict(model_of(scene.student).named_parameters()), plain_gradient(scene, objective)
    for ranks, stage in ((1, 0), (2, 3)):
        config = run_config(scene, objective=objective, **PLAIN, world_size=ranks, zero_stage=stage)
        _, weights = worlds[ranks].run(train, config, scene, 1)[0]
        assert weights.keys() == start.keys()
        for name, gradient in want.items():
            moved = (start[name].detach() - torch.tensor(weights[name])) / SGD["lr"]
            assert (moved - gradient).abs().max() <= LIMIT * largest(want), (ranks, name)


def losses_of(world: World, scene: Scene, **learner: object) -> list[float]:
    objective = OBJECTIVES["sequences"]
    (metrics, _), *_ = world.run(train, run_config(scene, objective=objective, **learner), scene, 4)
    return [step["learner/loss"] for step in metrics]


def test_all_stages_and_ways_to_save_memory_learn_alike(worlds: dict[int, World], scene: Scene) -> None:
    optimizer = {
        "lr": 1e-2,
        "eps": 1e-4,
        "schedule": "cosine",
        "warmup_steps": 1,
        "weight_decay": 0.1,
    }
    shared = {"optimizer": optimizer, "max_grad_norm": 0.5, "max_steps": 4}
    want = losses_of(worlds[1], scene, **shared)
    assert want[0] == want[1] > want[2] > want[3]  # the rate of the first step is 0
    for stage in STAGES[1:]:
        found = losses_of(worlds[2], scene, world_size=2, zero_stage=stage, **shared)
        assert found == pytest.approx(want, rel=1e-5)
    for way in ({"offload": "cpu", "zero_stage": 2}, {"offload": "cpu", "zero_stage": 3}):
        assert losses_of(worlds[2], scene, world_size=2, **way, **shared) == pytest.approx(want, rel=1e-5)
    for stage in (0, 3):
        found = losses_of(worlds[1], scene, gradient_checkpointing=True, zero_stage=stage, **shared)
        assert found == pytest.approx(want, rel=1e-5)


def test_bfloat16_follows_float32_at_every_stage(worlds: dict[int, World], scene: Scene) -> None:
    optimizer = {"lr": 3e-3, "eps": 1e-4}
    want = losses_of(worlds[1], scene, optimizer=optimizer)
    for stage in STAGES:
        found = losses_of(
            worlds[2], scene, optimizer=optimizer, dtype="bfloat16", world_size=2, zero_stage=stage
        )
        assert found == pytest.approx(want, rel=2e-2)
        assert found[3] < found[0]


@pytest.mark.parametrize("stage", STAGES)
def test_a_bad_answer_stops_all_ranks_by_name_and_moves_nothing(
    worlds: dict[int, World], scene: Scene, stage: int
) -> None:
    samples = list(scene.samples)
    bad = samples[5].passage
    assert isinstance(bad, Rollout)
    logprobs = bad.behaviour_logprobs.copy()
    logprobs[1] = np.nan
    samples[5] = replace(samples[5], passage=replace(bad, behaviour_logprobs=logprobs))
    for size in (1, 2):
        config = run_config(scene, world_size=size, zero_stage=stage)
        results = worlds[size].run(meet_a_bad_answer, config, replace(scene, samples=samples))
        for told, moved in results:
            assert "p/5#0" in told
            assert "p/4" not in told
            assert not moved


@pytest.mark.parametrize("stage", STAGES)
def test_a_gradient_that_is_not_finite_moves_nothing(
    worlds: dict[int, World], scene: Scene, stage: int
) -> None:
    for size in (1, 2):
        config = run_config(scene, world_size=size, zero_stage=stage)
        for norm, moved in worlds[size].run(step_on_infinity, config, scene):
            assert not np.isfinite(norm)
            assert not moved


def test_decay_moves_what_has_no_gradient_on_one_rank_as_on_two(
    worlds: dict[int, World], tmp_path: Path
) -> None:
    scene = make_scene(tmp_path, tied=False)
    config = run_config(scene, optimizer={"name": "adamw", "lr": 1e-2, "weight_decay": 0.5})
    ends = []
    for size in (1, 2):
        ranked = config.model_copy(update={"learner": config.learner.model_copy(update={"world_size": size})})
        before, after = worlds[size].run(step_on_the_body_alone, ranked, scene)[0]
        assert np.abs(after - before).max() > 1e-5
        ends.append(after)
    np.testing.assert_array_equal(*ends)


@pytest.mark.parametrize("stage", STAGES)
def test_a_learner_that_goes_on_from_a_checkpoint_was_never_stopped(
    worlds: dict[int, World], scene: Scene, tmp_path: Path, stage: int
) -> None:
    optimizer = {"lr": 1e-2, "eps": 1e-4, "schedule": "linear", "warmup_steps": 2}
    config = run_config(scene, world_size=2, zero_stage=stage, optimizer=optimizer)
    for losses, again, step in worlds[2].run(train_in_halves, config, scene, tmp_path / "kept"):
        assert step == 2
        assert again == losses[2:]


def test_dropout_is_off_where_the_student_must_be_the_one_that_sampled(tmp_path: Path) -> None:
    path = tiny_model("gpt2", tmp_path)
    ids = torch.arange(3, 19)[None]
    for dropout in (False, True):
        for checkpointing in (False, True):
            settings = LearnerConfig(gradient_checkpointing=checkpointing)
            student = load_student(ModelConfig(path=str(path)), settings, dropout=dropout).train()
            assert torch.equal(student(ids).logits, student(ids).logits) is not dropout


def test_offload_without_zero_is_refused_with_the_way_out() -> None:
    def told(stage: int) -> list[str]:
        learner = LearnerConfig(offload="cpu", zero_stage=stage)
        faults = RunConfig(student=ModelConfig(path="student"), learner=learner).faults()
        return [text for text in map(str, faults) if "learner.offload" in text]

    (fault,) = told(0)
    assert re.search(r"learner\.offload = cpu .* set learner\.zero_stage to 1, 2 or 3", fault)
    assert told(2) == []


def test_bfloat16_never_adds_gradients_up_in_bfloat16() -> None:
    assert [LearnerConfig(dtype="bfloat16", zero_stage=s).effective_zero_stage for s in STAGES] == [
        1,
        1,
        2,
        3,
    ]
    assert [LearnerConfig(zero_stage=s).effective_zero_stage for s in STAGES] == [0, 1, 2, 3]


def test_the_tokens_that_atkd_calls_hard_are_those_of_all_ranks(
    worlds: dict[int, World], scene: Scene
) -> None:
    objective = ObjectiveConfig(kind="kd", divergence="atkd")
    found = [
        worlds[ranks].run(
            train, run_config(scene, objective=objective, world_size=ranks, micro_batch_size=2), scene, 2
        )
        for ranks in (1, 2)
    ]
    ((alone, _),), ((shared, _), *_) = found
    for one, two in zip(alone, shared, strict=True):
        assert two["learner/divergence"] == pytest.approx(one["learner/divergence"], rel=1e-5)
        assert two["learner/grad_norm"] == pytest.approx(one["learner/grad_norm"], rel=1e-4)

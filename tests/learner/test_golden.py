"""The reference preset reproduces the numbers of the authors' released code, through the loss that trains.

The cases come from the folder that MINILLM_GOLDEN names, else from tests/golden. Hidden states are the logits
and both heads the identity, so the production path sees exactly the recorded logits.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from minillm_ray.common.config.objective import ObjectiveConfig
from minillm_ray.common.heads import Head
from minillm_ray.learner.fused_loss import FusedLoss, fused_loss
from minillm_ray.learner.objective import (
    Answers,
    advantage_moments,
    answer_divergence,
    answer_loss,
    answer_rewards,
    loss_count,
    token_constants,
    unwhitened_advantages,
)
from minillm_ray.learner.returns import importance_weights, merged
from minillm_ray.tests.learner.problems import changed
from torch import Tensor

FOLDER = Path(os.environ.get("MINILLM_GOLDEN", Path(__file__).parents[1] / "golden"))
CASES = sorted(FOLDER.glob("*.npz"))
LIMIT = 1e-5
"""Largest difference allowed, relative to the largest reference value of the array."""


class Golden:
    """One case: the recorded arrays, and the same problem as the learner is given it."""

    def __init__(self, path: Path):
        with np.load(path) as data:
            self.recorded = {name: data[name] for name in data.files}
        hyper = {name[3:]: float(v) for name, v in self.recorded.items() if name.startswith("hp_")}
        self.temperature = hyper["temperature"]
        self.settings = ObjectiveConfig(
            preset="reference",
            gamma=hyper["gamma"],
            epsilon=hyper["cliprange"],
            reward_scaling=hyper["reward_scaling"],
            reward_clip=hyper["cliprange_reward"],
        )
        self.ids = torch.from_numpy(self.recorded["response_ids"])
        self.slots = self.ids.shape[1]
        self.first = self.recorded["query_ids"].shape[1] - 1
        student = self.answer_logits("student_logits_at_sampling")
        teacher = self.answer_logits("teacher_logits")
        log_q = self.drawn(student / self.temperature)
        log_p = self.drawn(teacher / self.temperature)
        mixed = torch.logaddexp(
            np.log1p(-hyper["alpha"]) + log_q, torch.tensor(hyper["alpha"], dtype=log_q.dtype).log() + log_p
        )
        self.answers = Answers(
            lengths=torch.from_numpy(self.recorded["response_lengths"]),
            behaviour_logprobs=mixed,
            student_logprobs=log_q,
            teacher_logprobs=self.drawn(teacher),
        )
        self.mask = self.answers.mask

    def answer_logits(self, name: str) -> Tensor:
        return torch.from_numpy(self.recorded[name])[:, self.first : self.first + self.slots]

    def drawn(self, logits: Tensor) -> Tensor:
        return logits.log_softmax(-1).gather(-1, self.ids[..., None])[..., 0]

    def loss(self, parts: list[slice], **changes: object) -> tuple[float, Tensor, list[FusedLoss]]:
        """(loss, gradient in the full sequence's logits) with the answers split into micro-batches."""
        settings = changed(self.settings, **changes)
        answers = [self.part(rows) for rows in parts]
        statistics = merged(advantage_moments(a, settings, self.slots) for a in answers)
        divisor = sum(loss_count(a.lengths, settings) for a in answers)
        total, results = 0.0, []
        gradient = torch.zeros(self.recorded["grad_student_logits"].shape)
        now, teacher_now = self.answer_logits("student_logits_now"), self.answer_logits("teacher_logits")
        identity = Head(weight=torch.eye(now.shape[-1]), vocabulary=now.shape[-1])
        for rows, part in zip(parts, answers, strict=True):
            hidden = now[rows][part.mask].requires_grad_()
            constants = token_constants(part, settings, statistics)[part.mask]
            result = fused_loss(
                hidden,
                identity,
                self.ids[rows][part.mask],
                answer_loss(settings, constants),
                divisor=divisor,
                teacher_hidden=teacher_now[rows][part.mask],
                teacher=identity,
                divergence=answer_divergence(settings),
                temperature=self.temperature,
                chunk_tokens=7,
            )
            result.loss.backward()
            total += result.loss.item()
            results.append(result)
            assert hidden.grad is not None
            view = gradient[rows, self.first : self.first + self.slots]
            view[part.mask] = hidden.grad
        return total, gradient, results

    def part(self, rows: slice) -> Answers:
        a = self.answers
        return Answers(
            lengths=a.lengths[rows],
            behaviour_logprobs=a.behaviour_logprobs[rows],
            student_logprobs=a.student_logprobs[rows],
            teacher_logprobs=a.teacher_logprobs[rows],
        )


def assert_close(found: Tensor | float, recorded: np.ndarray) -> None:
    difference = np.abs(np.asarray(found, dtype=np.float64) - recorded).max()
    assert difference <= LIMIT * np.abs(recorded).max()


def splits(golden: Golden) -> list[list[slice]]:
    count = len(golden.ids)
    return [[slice(0, count)], [slice(0, 1), slice(1, count)], [slice(i, i + 1) for i in range(count)]]


@pytest.fixture(params=CASES, ids=lambda path: path.stem)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def test_golden_cases_are_there():
    assert CASES, f"no *.npz in {FOLDER}"


def test_golden_masks_come_from_lengths(golden: Golden):
    assert np.array_equal(golden.mask.numpy(), golden.recorded["response_mask"])


def test_golden_logprobs_at_sampling(golden: Golden):
    for found, name in (
        (golden.answers.student_logprobs, "logprobs_student_at_sampling"),
        (golden.answers.teacher_logprobs, "logprobs_teacher"),
    ):
        assert_close(torch.where(golden.mask, found, 0.0), golden.recorded[name])


def test_golden_importance_weights(golden: Golden):
    a = golden.answers
    weights = importance_weights(a.student_logprobs, a.behaviour_logprobs, golden.mask)
    assert_close(weights, golden.recorded["importance_weights"])


def test_golden_rewards(golden: Golden):
    assert_close(answer_rewards(golden.answers, golden.settings), golden.recorded["rewards"])


def test_golden_advantages_without_whitening(golden: Golden):
    found = unwhitened_advantages(golden.answers, golden.settings)
    assert_close(found, golden.recorded["advantages_without_whitening"])


def test_golden_advantages(golden: Golden):
    for parts in splits(golden):
        answers = [golden.part(rows) for rows in parts]
        statistics = merged(advantage_moments(a, golden.settings, golden.slots) for a in answers)
        found = [token_constants(a, golden.settings, statistics).advantage for a in answers]
        assert_close(torch.cat(found), golden.recorded["advantages"])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("total_loss", {}),
        ("pg_loss", {"single_step": False}),
        ("single_step_loss", {"long_term": False}),
    ],
)
def test_golden_losses(golden: Golden, name: str, changes: dict[str, bool]):
    for parts in splits(golden):
        assert_close(golden.loss(parts, **changes)[0], golden.recorded[name])


def test_golden_losses_as_reported_per_token(golden: Golden):
    _, _, (result,) = golden.loss([slice(0, len(golden.ids))])
    for figure, name in (("long_term", "pg_loss"), ("single_step", "single_step_loss")):
        assert_close(result.figures[figure].mean(), golden.recorded[name])


def test_golden_gradient(golden: Golden):
    for parts in splits(golden):
        assert_close(golden.loss(parts)[1], golden.recorded["grad_student_logits"])

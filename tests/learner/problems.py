"""Small problems for the tests of the maths: random answers, and a tiny model whose answers are all known."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields

import torch
from minillm_ray.common.config.objective import ObjectiveConfig
from minillm_ray.common.heads import Head
from minillm_ray.learner.fused_loss import FusedLoss, fused_loss
from minillm_ray.learner.objective import (
    Answers,
    advantage_moments,
    answer_divergence,
    answer_loss,
    loss_count,
    needs_current_logprobs,
    token_constants,
)
from minillm_ray.learner.returns import merged
from torch import Tensor

PAPER, REFERENCE = ObjectiveConfig(), ObjectiveConfig(preset="reference")


def changed(settings: ObjectiveConfig, **changes: object) -> ObjectiveConfig:
    """The same settings but for these, checked anew."""
    return ObjectiveConfig.model_validate({**settings.model_dump(), **changes})


@dataclass(kw_only=True, eq=False)
class Batch:
    """Padded answers with hidden states of both networks: B answers, T slots."""

    answers: Answers
    ids: Tensor  # [B, T]
    hidden: Tensor  # [B, T, H]
    teacher_hidden: Tensor  # [B, T, H_teacher]
    student: Head
    teacher: Head

    def take(self, rows: Tensor) -> Batch:
        return Batch(
            answers=Answers(**{f.name: getattr(self.answers, f.name)[rows] for f in fields(Answers)}),
            ids=self.ids[rows],
            hidden=self.hidden[rows],
            teacher_hidden=self.teacher_hidden[rows],
            student=self.student,
            teacher=self.teacher,
        )

    def padded(self, extra: int) -> Batch:
        """The same answers with `extra` slots of rubbish behind them."""

        def wide(tensor: Tensor, rubbish: float) -> Tensor:
            tail = torch.full((len(tensor), extra, *tensor.shape[2:]), rubbish, dtype=tensor.dtype)
            return torch.cat([tensor, tail], 1)

        a = self.answers
        return Batch(
            answers=Answers(
                lengths=a.lengths,
                behaviour_logprobs=wide(a.behaviour_logprobs, -3.0),
                student_logprobs=wide(a.student_logprobs, 7.0),
                teacher_logprobs=wide(a.teacher_logprobs, float("nan")),
            ),
            ids=wide(self.ids, 1),
            hidden=wide(self.hidden, 5.0),
            teacher_hidden=wide(self.teacher_hidden, 6.0),
            student=self.student,
            teacher=self.teacher,
        )


def random_batch(*, answers: int = 6, slots: int = 7, seed: int = 0, dtype=torch.float64) -> Batch:
    """Answers of every length from 1 on, drawn from nothing in particular, a student that moved since."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=dtype)

    words, width, teacher_width = 23, 5, 8
    hidden, teacher_hidden = normal(answers, slots, width), normal(answers, slots, teacher_width)
    student = Head(weight=normal(words + 3, width).requires_grad_(), vocabulary=words)
    teacher = Head(weight=0.5 * normal(words + 5, teacher_width), vocabulary=words)
    ids = torch.randint(0, words, (answers, slots), generator=g)
    with torch.no_grad():
        log_q = _drawn(student.logits(hidden + 0.2 * normal(*hidden.shape)), ids)
        log_p = _drawn(teacher.logits(teacher_hidden), ids)
        mixed = (0.8 * log_q.exp() + 0.2 * log_p.exp()).log()
    lengths = torch.arange(answers) % slots + 1
    return Batch(
        answers=Answers(
            lengths=lengths, behaviour_logprobs=mixed, student_logprobs=log_q, teacher_logprobs=log_p
        ),
        ids=ids,
        hidden=hidden.requires_grad_(),
        teacher_hidden=teacher_hidden,
        student=student,
        teacher=teacher,
    )


def _drawn(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    return (logits / temperature).log_softmax(-1).gather(-1, ids[..., None])[..., 0]


def batch_loss(
    batch: Batch,
    settings: ObjectiveConfig,
    *,
    temperature: float = 1.0,
    splits: list[Tensor] | None = None,
    slots: int | None = None,
    weights: Tensor | None = None,
    chunk_tokens: int = 5,
) -> tuple[Tensor, list[FusedLoss]]:
    """The loss of one optimiser step in micro-batches (row numbers each), through what the learner runs.

    `slots`: max_new_tokens. `weights` [B]: how often each answer counts, in place of once; then the loss is
    the plain weighted sum over answers.
    """
    whole = torch.arange(len(batch.ids))
    parts = [(rows, batch.take(rows)) for rows in splits or [whole]]
    slots = slots or batch.ids.shape[1]
    statistics = merged(advantage_moments(part.answers, settings, slots) for _, part in parts)
    divisor = sum(loss_count(part.answers.lengths, settings) for _, part in parts)
    total, results = batch.hidden.new_zeros(()), []
    for rows, part in parts:
        mask, current = part.answers.mask, None
        if needs_current_logprobs(settings):
            current = _drawn(part.student.logits(part.hidden), part.ids, temperature).detach()
        loss = answer_loss(settings, token_constants(part.answers, settings, statistics, current)[mask])
        if weights is not None:
            loss = _weighted(loss, weights[rows][:, None].expand(mask.shape)[mask])
        result = fused_loss(
            part.hidden[mask],
            part.student,
            part.ids[mask],
            loss,
            divisor=divisor if weights is None else 1.0,
            teacher_hidden=part.teacher_hidden[mask],
            teacher=part.teacher,
            divergence=answer_divergence(settings),
            temperature=temperature,
            chunk_tokens=chunk_tokens,
        )
        total = total + result.loss
        results.append(result)
    return total, results


def _weighted(loss, weights: Tensor):
    def weighted(divergence: Tensor, logprob: Tensor, tokens: slice):
        value, figures = loss(divergence, logprob, tokens)
        return weights[tokens] * value, figures

    return weighted


class CountableModel:
    """A student and a teacher over 3 words, 0 ending an answer, at most 4 tokens: 31 answers, all listed.

    Each prefix has a hidden state of its own; the student's states and head are the parameters.
    """

    words, slots = 3, 4

    def __init__(self, *, seed: int = 0, temperature: float = 1.0):
        g = torch.Generator().manual_seed(seed)
        self.temperature = temperature
        self.answers = [
            y
            for length in range(1, self.slots + 1)
            for y in itertools.product(range(self.words), repeat=length)
            if 0 not in y[:-1] and (y[-1] == 0 or length == self.slots)
        ]
        self.prefixes = sorted({y[:t] for y in self.answers for t in range(len(y))})
        number = {prefix: i for i, prefix in enumerate(self.prefixes)}

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, dtype=torch.float64)

        self.states = normal(len(self.prefixes), 4).requires_grad_()
        self.student = Head(weight=(0.7 * normal(self.words, 4)).requires_grad_(), vocabulary=self.words)
        self.teacher_states = normal(len(self.prefixes), 5)
        self.teacher = Head(weight=0.7 * normal(self.words, 5), vocabulary=self.words)
        self.lengths = torch.tensor([len(y) for y in self.answers])
        self.mask = torch.arange(self.slots) < self.lengths[:, None]
        self.ids = torch.zeros(len(self.answers), self.slots, dtype=torch.int64)
        self.where = torch.zeros_like(self.ids)
        for row, y in enumerate(self.answers):
            self.ids[row, : len(y)] = torch.tensor(y)
            self.where[row, : len(y)] = torch.tensor([number[y[:t]] for t in range(len(y))])

    @property
    def parameters(self) -> list[Tensor]:
        return [self.states, self.student.weight]

    def student_logprobs(self) -> Tensor:
        """[answers, slots] log q of every token of every answer."""
        return _drawn(self.student.logits(self.states)[self.where], self.ids, self.temperature)

    def teacher_logprobs(self) -> Tensor:
        return _drawn(self.teacher.logits(self.teacher_states)[self.where], self.ids, self.temperature)

    def of_answers(self, logprobs: Tensor) -> Tensor:
        """Log-probability of each whole answer."""
        return torch.where(self.mask, logprobs, 0.0).sum(-1)

    def exact_gradient(self) -> Tensor:
        """Autograd of equation 1: the sum of q (log q - log p) over all answers."""
        log_q, log_p = self.of_answers(self.student_logprobs()), self.of_answers(self.teacher_logprobs())
        return self._flat((log_q.exp() * (log_q - log_p)).sum())

    def expected_gradient(
        self, settings: ObjectiveConfig, *, mix: float, sampled_by: Tensor | None = None
    ) -> Tensor:
        """The mean, over all answers of the mixture, of the gradient that the learner would take.

        `sampled_by`: log q of the student that sampled, where it is another than the one in training.
        """
        log_q = self.student_logprobs().detach() if sampled_by is None else sampled_by
        log_p = self.teacher_logprobs()
        mixed = (mix * log_p.exp() + (1 - mix) * log_q.exp()).log()
        batch = Batch(
            answers=Answers(
                lengths=self.lengths,
                behaviour_logprobs=mixed,
                student_logprobs=log_q,
                teacher_logprobs=log_p,
            ),
            ids=self.ids,
            hidden=self.states[self.where],
            teacher_hidden=self.teacher_states[self.where],
            student=self.student,
            teacher=self.teacher,
        )
        return self._flat(
            batch_loss(batch, settings, temperature=self.temperature, weights=self.of_answers(mixed).exp())[0]
        )

    def _flat(self, loss: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, self.parameters)])

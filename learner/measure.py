"""Exact figures of the student on given answers, without learning from them.

One record per answer, so that the caller can average over tokens and draw intervals over answers. All ranks
run it in lock-step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..common import divergence
from ..common.heads import Head
from ..common.types import AnswerMeasure, Floats, Passage, Scored, sample_of
from .batching import Batch, batch_of, passage_of
from .engine import TrainEngine
from .sharding import RankItems
from .step import Load, teacher_hidden


def measure(
    engine: TrainEngine,
    rank_items: RankItems,
    load: Load,
    *,
    teacher: Head | None,
    temperature: float,
    chunk_tokens: int,
) -> list[AnswerMeasure]:
    """A record of each of this rank's answers, in the order of its micro-batches.

    Divergences are measured where a teacher head is there and all answers of the micro-batch came with the
    teacher's hidden states.
    """
    records: list[AnswerMeasure] = []
    for micro_batch in rank_items.micro_batches:
        samples = [load(item) for item in micro_batch]
        compares = teacher is not None and all(_has_hidden(sample) for sample in samples)
        batch = batch_of(samples, engine.device, hidden=compares, max_packed_len=engine.max_packed_len)
        found = _measured(engine, batch, teacher if compares else None, temperature, chunk_tokens)
        records += _records(samples, batch, found)
    return records


def read_logprobs(
    engine: TrainEngine, passages: Sequence[Passage], *, micro_batch_size: int, chunk_tokens: int
) -> list[Floats]:
    """log q [T] of each answer at temperature 1, in nats. All ranks read the same passages."""
    found: list[Floats] = []
    for first in range(0, len(passages), micro_batch_size):
        part = passages[first : first + micro_batch_size]
        batch = batch_of(part, engine.device, hidden=False, max_packed_len=engine.max_packed_len)
        logprobs = _measured(engine, batch, None, 1.0, chunk_tokens).logprobs.float().cpu()
        rows = batch.rows.cpu()
        found += [logprobs[rows == number].numpy() for number in range(len(part))]
    return found


def _measured(
    engine: TrainEngine, batch: Batch, teacher: Head | None, temperature: float, chunk_tokens: int
) -> divergence.Measured:
    def use(hidden: Tensor, student: Head) -> divergence.Measured:
        return divergence.measure(
            hidden,
            student,
            batch.targets,
            teacher_hidden=teacher_hidden(batch, teacher),
            teacher=teacher,
            temperature=temperature,
            chunk_tokens=chunk_tokens,
        )

    return engine.run(batch, use, train=False)


def _records(
    samples: Sequence[Scored | Passage], batch: Batch, found: divergence.Measured
) -> list[AnswerMeasure]:
    def per_answer(values: Tensor | None) -> list[float] | list[None]:
        if values is None:
            return [None] * len(samples)
        sums = torch.zeros(len(samples), dtype=torch.float64, device=values.device)
        return sums.index_add_(0, batch.rows, values.double()).tolist()

    columns = zip(
        samples,
        per_answer(-found.logprobs),
        per_answer(found.entropy),
        per_answer(found.reverse_kl),
        per_answer(found.forward_kl),
        per_answer(found.overlap),
        strict=True,
    )
    records = []
    for sample, nll, entropy, reverse_kl, forward_kl, overlap in columns:
        passage = passage_of(sample)
        records.append(
            AnswerMeasure(
                prompt_id=passage.prompt_id,
                sample=sample_of(passage),
                tokens=len(passage.answer_ids),
                nll=nll or 0.0,
                entropy=entropy or 0.0,
                reverse_kl=reverse_kl,
                forward_kl=forward_kl,
                overlap=overlap,
            )
        )
    return records


def _has_hidden(sample: Scored | Passage) -> bool:
    return isinstance(sample, Scored) and sample.hidden is not None

"""Scored answers to the tensors of one micro-batch.

B = answers, R = rows that hold them (B, or 1 that they share), L = slots of a row, T = longest answer,
N = answer tokens of all B, H = width of the teacher's hidden states. What is left of a row is padding, and
masks come from lengths, never from token ids. Messages are read-only and shared with other processes: tensors
are copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..common.arrays import tensor_of
from ..common.errors import DataError
from ..common.packed_attention import Layout
from ..common.packing import pack
from ..common.types import Passage, Rollout, Scored, answer_name, sample_of
from .objective import Answers


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """One micro-batch as a model reads it. An empty one holds one row of one token and no positions."""

    names: tuple[str, ...]
    """prompt#sample of each answer."""
    ids: Tensor
    """int64 [R, L]; a causal model cannot see the zeros to the right of an answer that has a row alone."""
    layout: Layout | None
    """How the answers share one row; None where each has its own."""
    positions: Tensor
    """int64 [N]: where in the flat [R * L] the next token to come is an answer's, answer by answer; answers
    to one prompt may begin at one slot."""
    targets: Tensor
    """int64 [N]: that next token."""
    lengths: Tensor
    """int64 [B]: answer tokens."""
    teacher_hidden: Tensor | None
    """[N, H], where all answers came with them."""

    @property
    def rows(self) -> Tensor:
        """int64 [N]: which answer each position belongs to."""
        return torch.repeat_interleave(torch.arange(len(self.lengths), device=self.ids.device), self.lengths)


def passage_of(sample: Scored | Passage) -> Passage:
    """The prompt and answer of a sample, scored or not."""
    return sample.passage if isinstance(sample, Scored) else sample


def name_of(sample: Scored | Passage) -> str:
    """See `answer_name`."""
    passage = passage_of(sample)
    return answer_name(passage.prompt_id, sample_of(passage))


def batch_of(
    samples: Sequence[Scored | Passage], device: torch.device, *, hidden: bool, max_packed_len: int = 0
) -> Batch:
    """The micro-batch of these samples; `hidden` asks for the teacher's hidden states too.

    Answers share rows if none is longer than `max_packed_len`, which `enable_packing` gives for a model.
    """
    passages = [passage_of(sample) for sample in samples]
    for passage in passages:
        if not (len(passage.prompt_ids) and len(passage.answer_ids)):
            raise DataError(
                f"{passage.prompt_id}: {len(passage.prompt_ids)} prompt tokens and"
                f" {len(passage.answer_ids)} answer tokens; both need at least one to be learned from"
            )
    # Nothing follows an answer's last token, so it is no input.
    packed = pack(
        [np.concatenate([p.prompt_ids, p.answer_ids[:-1]]) for p in passages], max_packed_len=max_packed_len
    )
    positions, targets = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
    for slots, passage in zip(packed.slots, passages, strict=True):
        positions.append(slots[len(passage.prompt_ids) - 1 :])
        targets.append(passage.answer_ids)
    return Batch(
        names=tuple(name_of(sample) for sample in samples),
        ids=torch.from_numpy(packed.ids).to(device),
        layout=Layout.of(packed, device),
        positions=torch.from_numpy(np.concatenate(positions)).to(device),
        targets=torch.from_numpy(np.concatenate(targets).astype(np.int64)).to(device),
        lengths=torch.tensor([len(p.answer_ids) for p in passages], dtype=torch.int64, device=device),
        teacher_hidden=_hidden(samples, device) if hidden else None,
    )


def pad_answers(
    samples: Sequence[Scored | Passage], device: torch.device, reward_temperature: Literal["sampling", "one"]
) -> Answers:
    """The log-probs that came with sampled answers, [B, T] each, with the teacher's at the given temperature.

    Raises DataError for a sample that was not drawn, or not scored.
    """
    rollouts: list[Rollout] = []
    teacher: list[npt.NDArray[np.float32]] = []
    for sample in samples:
        if not isinstance(sample, Scored) or not isinstance(sample.passage, Rollout):
            raise DataError(
                f"{name_of(sample)}: objective.kind = minillm learns from sampled answers that a"
                " teacher has scored; this one is not; use kind = sft for given answers"
            )
        given = sample.plain_teacher_logprobs if reward_temperature == "one" else sample.teacher_logprobs
        if given is None:
            raise DataError(f"{name_of(sample)}: the loss needs the teacher's log-probs, and it has none")
        rollouts.append(sample.passage)
        teacher.append(given)
    return Answers(
        lengths=torch.tensor([len(r.answer_ids) for r in rollouts], dtype=torch.int64, device=device),
        behaviour_logprobs=_rows([r.behaviour_logprobs for r in rollouts], device),
        student_logprobs=_rows([r.student_logprobs for r in rollouts], device),
        teacher_logprobs=_rows(teacher, device),
    )


def _hidden(samples: Sequence[Scored | Passage], device: torch.device) -> Tensor | None:
    parts = [s for s in samples if isinstance(s, Scored) and s.hidden is not None]
    if len(parts) < len(samples):
        missing = next(name_of(s) for s in samples if not isinstance(s, Scored) or s.hidden is None)
        raise DataError(f"{missing}: the loss needs the teacher's hidden states, and it came without them")
    if not parts:
        return None
    tensors = [tensor_of(s.hidden, s.hidden_dtype) for s in parts if s.hidden is not None]
    return torch.cat(tensors).to(device)


def _rows(arrays: Sequence[npt.NDArray[np.float32]], device: torch.device) -> Tensor:
    """Arrays [T_i] as one float32 [B, T], zeros beyond each."""
    slots = max((len(array) for array in arrays), default=0)
    rows = np.zeros((len(arrays), slots), np.float32)
    for row, array in enumerate(arrays):
        rows[row, : len(array)] = array
    return torch.from_numpy(rows).to(device)

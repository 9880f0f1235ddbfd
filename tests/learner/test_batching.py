"""Scored answers as padded tensors."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from minillm_ray.common.arrays import tensor_of
from minillm_ray.common.errors import DataError
from minillm_ray.common.types import Passage, Rollout, Scored, WeightVersion
from minillm_ray.learner.batching import batch_of, pad_answers

CPU = torch.device("cpu")


def scored(name: str, prompt: list[int], answer: list[int], *, width: int = 3) -> Scored:
    length = len(answer)
    rollout = Rollout(
        prompt_id=name,
        prompt_ids=np.array(prompt, np.int32),
        answer_ids=np.array(answer, np.int32),
        sample=2,
        behaviour_logprobs=-np.arange(1, length + 1, dtype=np.float32),
        student_logprobs=-np.arange(11, length + 11, dtype=np.float32),
        mixed_teacher_logprobs=None,
        oldest=WeightVersion(0),
        newest=WeightVersion(0),
        finish="stop",
    )
    hidden = np.arange(length * width, dtype=np.float32).reshape(length, width) + len(prompt)
    ones = np.ones(length, np.float32)
    return Scored(
        passage=rollout, teacher_logprobs=-2 * ones, plain_teacher_logprobs=-3 * ones, hidden=hidden
    )


PAIR = [scored("a", [5, 6, 7], [0, 9]), scored("b", [4], [8, 0, 3, 1])]


def test_each_position_predicts_its_target() -> None:
    batch = batch_of(PAIR, CPU, hidden=True)
    assert batch.ids.tolist() == [[5, 6, 7, 0], [4, 8, 0, 3]], "an answer's last token is never read"
    assert batch.targets.tolist() == [0, 9, 8, 0, 3, 1]
    assert batch.ids.flatten()[batch.positions].tolist() == [7, 0, 4, 8, 0, 3]
    assert batch.rows.tolist() == [0, 0, 1, 1, 1, 1]
    assert batch.names == ("a#2", "b#2")


def test_hidden_states_stand_at_their_answers_positions() -> None:
    batch = batch_of(PAIR, CPU, hidden=True)
    assert batch.teacher_hidden is not None
    for row, sample in enumerate(PAIR):
        assert sample.hidden is not None
        assert torch.equal(batch.teacher_hidden[batch.rows == row], torch.tensor(sample.hidden))


def test_masks_come_from_lengths_and_not_from_ids() -> None:
    answers = pad_answers(PAIR, CPU, "sampling")
    assert answers.mask.tolist() == [[True, True, False, False], [True, True, True, True]]
    assert answers.behaviour_logprobs.tolist() == [[-1, -2, 0, 0], [-1, -2, -3, -4]]
    assert answers.student_logprobs[0].tolist() == [-11, -12, 0, 0]


def test_the_reward_temperature_chooses_the_teachers_logprobs() -> None:
    assert pad_answers(PAIR, CPU, "sampling").teacher_logprobs[1].tolist() == [-2] * 4
    assert pad_answers(PAIR, CPU, "one").teacher_logprobs[1].tolist() == [-3] * 4


def test_an_empty_micro_batch_is_a_row_without_positions() -> None:
    batch = batch_of([], CPU, hidden=True)
    assert batch.ids.shape == (1, 1)
    assert len(batch.positions) == len(batch.targets) == len(batch.lengths) == 0
    assert batch.teacher_hidden is None
    assert pad_answers([], CPU, "one").behaviour_logprobs.shape == (0, 0)


def test_bfloat16_travels_as_the_bits_of_uint16() -> None:
    values = torch.tensor([[1.5, -2.25], [0.0, 3e38]], dtype=torch.bfloat16)
    bits = values.view(torch.uint16).numpy()
    bits.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(tensor_of(bits, "bfloat16"), values)
    sample = replace(scored("a", [5], [1, 2]), hidden=bits, hidden_dtype="bfloat16")
    assert torch.equal(batch_of([sample], CPU, hidden=True).teacher_hidden, values)  # pyright: ignore


def test_what_a_loss_needs_and_did_not_get_is_said_by_name() -> None:
    passage = Passage(prompt_id="given/1", prompt_ids=np.ones(2, np.int32), answer_ids=np.ones(2, np.int32))
    with pytest.raises(DataError, match=r"given/1.*hidden"):
        batch_of([passage], CPU, hidden=True)
    with pytest.raises(DataError, match=r"given/1.*minillm"):
        pad_answers([passage], CPU, "one")
    unasked = replace(PAIR[0], teacher_logprobs=None, plain_teacher_logprobs=None)
    with pytest.raises(DataError, match=r"a#2.*log-probs"):
        pad_answers([unasked], CPU, "one")
    empty = replace(passage, answer_ids=np.zeros(0, np.int32))
    with pytest.raises(DataError, match="given/1: 2 prompt tokens and 0 answer tokens"):
        batch_of([empty], CPU, hidden=False)

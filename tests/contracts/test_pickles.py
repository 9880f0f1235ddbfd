"""What crosses a process boundary arrives as it was sent: messages and errors survive pickling."""

from __future__ import annotations

import copy
import inspect
import pickle
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
from minillm_ray.common import errors, types, weights
from minillm_ray.common.types import (
    AnswerFormat,
    AnswerMeasure,
    BatchSummary,
    Dropped,
    Passage,
    Prompt,
    Rollout,
    SamplingSpec,
    Scored,
    StepReport,
    WeightVersion,
)
from minillm_ray.common.weights import TensorForm, WeightBucket, WeightManifest

IDS = np.array([1, 5, 9], np.int32)
LOGPROBS = np.array([-0.5, -1.0, -2.0], np.float32)
FORM = TensorForm(name="head", shape=(2, 3), dtype="bfloat16")
DROPPED = Dropped(prompt_id="dolly/1", stage="prompts", reason="too long", detail="300 tokens")
PASSAGE = Passage(prompt_id="dolly/1", prompt_ids=IDS, answer_ids=IDS)
EXAMPLES: list[Any] = [
    Prompt(id="dolly/1", token_ids=IDS, references=("Paris",)),
    SamplingSpec(max_tokens=8, teacher_mix=0.2, seed=3),
    AnswerFormat(end_ids=(2, 7)),
    PASSAGE,
    Rollout(
        prompt_id="dolly/1",
        prompt_ids=IDS,
        answer_ids=IDS,
        sample=2,
        behaviour_logprobs=LOGPROBS,
        student_logprobs=LOGPROBS,
        mixed_teacher_logprobs=None,
        oldest=WeightVersion(3),
        newest=WeightVersion(4),
        finish="stop",
    ),
    Scored(
        passage=PASSAGE,
        teacher_logprobs=LOGPROBS,
        plain_teacher_logprobs=LOGPROBS,
        hidden=np.ones((3, 2), np.uint16),
        hidden_dtype="bfloat16",
    ),
    BatchSummary(
        prompt_ids=("dolly/1",), samples=(0,), prompt_tokens=(3,), answer_tokens=(3,), dropped=(DROPPED,)
    ),
    DROPPED,
    AnswerMeasure(
        prompt_id="dolly/1",
        sample=0,
        tokens=3,
        nll=2.0,
        entropy=1.5,
        reverse_kl=0.5,
        forward_kl=0.25,
        overlap=2.0,
    ),
    StepReport(step=4, metrics={"learner/loss": (1.0, 2.0)}, seconds=0.5),
    FORM,
    WeightBucket(ref="a reference", tensors=(FORM,), checksum=17),
    WeightManifest(version=WeightVersion(4), buckets=()),
]


def _same(left: Any, right: Any) -> bool:
    if is_dataclass(left):
        return type(left) is type(right) and all(
            _same(getattr(left, field.name), getattr(right, field.name)) for field in fields(left)
        )
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and np.array_equal(left, right)
    if isinstance(left, tuple):
        return len(left) == len(right) and all(map(_same, left, right))
    return left == right


def _own_classes(module: Any) -> set[type]:
    return {
        found
        for _, found in inspect.getmembers(module, inspect.isclass)
        if found.__module__ == module.__name__
    }


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_message_arrives_as_it_was_sent(message: Any):
    assert _same(message, pickle.loads(pickle.dumps(message)))


def test_every_message_has_an_example_here():
    messages_of_ours = {
        found for module in (types, weights) for found in _own_classes(module) if is_dataclass(found)
    }
    assert {type(example) for example in EXAMPLES} == messages_of_ours


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_message_cannot_be_changed(message: Any):
    changed = copy.copy(message)
    with pytest.raises(AttributeError):
        setattr(changed, fields(message)[0].name, None)


ERRORS: list[type[Exception]] = sorted(
    (found for found in _own_classes(errors) if issubclass(found, Exception)), key=repr
)


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_arrives_with_its_kind_and_words(kind: type[Exception]):
    sent = kind("rollout.teacher_mix = 3 is not in [0, 1]; try 0.2")
    got = pickle.loads(pickle.dumps(sent))
    assert type(got) is kind
    assert str(got) == str(sent)
    assert vars(got) == vars(sent)


def test_a_configuration_error_keeps_all_its_faults_and_its_source():
    got = pickle.loads(pickle.dumps(errors.ConfigError("first", "second", source="run.yaml")))
    assert [str(fault) for fault in got.faults] == ["first", "second"]
    assert str(got) == "run.yaml cannot be used:\n  first\n  second"


def test_every_error_is_one_that_a_person_is_meant_to_read():
    assert all(issubclass(kind, errors.MinillmError) for kind in ERRORS)

"""The teacher's states out of mixed sampling are believed where they are its own, and only there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from minillm_ray.common.config.run import ModelConfig, RolloutConfig, RunConfig, TeacherServerConfig
from minillm_ray.common.metrics import MOST_STATES_GAP
from minillm_ray.common.types import BatchSummary
from minillm_ray.deploy.runtime.pool import Chunk
from minillm_ray.deploy.runtime.workers import WorkerGroup
from minillm_ray.deploy.training.collapse import symptoms

SIZES = BatchSummary(prompt_ids=("a",), samples=(0,), prompt_tokens=(3,), answer_tokens=(4,))
STUDENT, TEACHER = ModelConfig(path="student"), ModelConfig(path="teacher")


@dataclass
class Teachers:
    """Stands in for a pool of teacher actors: says how far states are from its own, and what it was given."""

    gap: float
    read: list[Any] = field(default_factory=list)
    asked: list[Any] = field(default_factory=list)

    def ask_one(self, call: Any) -> float:
        return call(self)

    @property
    def states_gap(self) -> Teachers:
        return self

    def remote(self, ref: Any) -> float:
        self.asked.append(ref)
        return self.gap

    def map(self, chunks: list[Chunk], call: Any, done: Any) -> list[Chunk]:
        self.read += [chunk.ref for chunk in chunks]
        return [Chunk(ref=f"{chunk.ref} as the teacher reads it", summary=chunk.summary) for chunk in chunks]


def scored(gap: float) -> tuple[WorkerGroup, Teachers, list[Any]]:
    workers, teachers = WorkerGroup.__new__(WorkerGroup), Teachers(gap)
    workers._config = RunConfig(student=STUDENT, teacher=TEACHER)
    workers._teachers = teachers  # pyright: ignore[reportAttributeAccessIssue]
    workers.states, workers.states_gap = "float32", None
    chunks = [
        Chunk(ref="mixed", summary=SIZES, scored=True),
        Chunk(ref="given", summary=SIZES),
        Chunk(ref="mixed too", summary=SIZES, scored=True),
    ]
    first = [chunk.ref for chunk in workers.score(chunks, hidden=True, logprobs=True)]
    assert [chunk.ref for chunk in workers.score(chunks, hidden=True, logprobs=True)] == first
    assert teachers.asked == ["mixed"], "one answer of the first set is enough"
    return workers, teachers, first


def test_states_that_are_the_teachers_own_stay_and_the_rest_is_read() -> None:
    workers, teachers, refs = scored(MOST_STATES_GAP)
    assert refs == ["mixed", "given as the teacher reads it", "mixed too"]
    assert set(teachers.read) == {"given"}
    assert workers.states == "float32"


def test_states_that_differ_are_never_asked_for_again_and_the_teacher_reads_all() -> None:
    workers, _, refs = scored(MOST_STATES_GAP + 0.01)
    assert refs == [f"{name} as the teacher reads it" for name in ("mixed", "given", "mixed too")]
    assert workers.states is None
    (symptom,) = symptoms({"teacher/states_gap": MOST_STATES_GAP + 0.01}, {})
    assert "teacher_server.reuse=false" in str(symptom)
    assert not symptoms({"teacher/states_gap": MOST_STATES_GAP}, {})


@pytest.mark.parametrize(
    ("changed", "reuses"),
    [
        ({}, True),
        ({"rollout": RolloutConfig(teacher_mix=0.0)}, False),
        ({"rollout": RolloutConfig(temperature=0.7)}, False),
        ({"rollout": RolloutConfig(dtype="bfloat16")}, False),
        ({"teacher_server": TeacherServerConfig(reuse=False)}, False),
        ({"teacher": None}, False),
    ],
)
def test_states_are_reused_only_where_mixed_sampling_has_the_same(
    changed: dict[str, Any], reuses: bool
) -> None:
    assert RunConfig(**{"student": STUDENT, "teacher": TEACHER, **changed}).reuses_states is reuses

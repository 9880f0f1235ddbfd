"""How far each part that reads a family is from a plain forward of transformers with eager attention.

As a program (`python -m minillm_ray.tests.family_gaps FOLDER NAME ...`) it writes a line of JSON for each
part as it is done: what comes after a crash is missing.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from minillm_ray.actors.scorer import Scorer
from minillm_ray.common.config.run import LearnerConfig, ModelConfig, TeacherServerConfig
from minillm_ray.common.divergence import drawn_logprobs
from minillm_ray.common.heads import check_head, read_head
from minillm_ray.common.packed_attention import enable_packing, read
from minillm_ray.common.types import Passage, SamplingSpec
from minillm_ray.learner.batching import batch_of
from minillm_ray.learner.deepspeed_engine import load_student
from minillm_ray.tests.actors.engines import EngineProcess, Pair, nudge, publish, some_prompts
from minillm_ray.tests.family_models import WINDOW, make
from minillm_ray.tests.tiny_models import tiny_model
from transformers import AutoModelForCausalLM

VOCABULARY = 128
COLUMNS = ("student", "teacher", "updates", "teacher of another", "scorer", "packed", "learner")
MIXED = SamplingSpec(max_tokens=12, teacher_mix=0.4, samples=2)


def reference(folder: Path) -> Any:
    """The model as transformers has it, with the attention that leaves nothing out."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
    ).eval()


@torch.no_grad()
def logprobs(model: Any, prompt: Any, answer: Any) -> np.ndarray:
    """Log-probs of an answer's tokens from one plain forward."""
    ids = torch.from_numpy(np.concatenate([prompt, answer])).long()[None]
    rows = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1, :VOCABULARY].float()
    return rows.log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])[:, 0].numpy()


def engine_gaps(engine: EngineProcess, student: Any, teacher: Any) -> tuple[float, float]:
    """Of the student and of the mixed-in teacher, over answers to prompts that begin alike and others."""
    prompts = some_prompts()
    gaps = [0.0, 0.0]
    for number, answer in enumerate(engine.call("generate", prompts, MIXED)):
        prompt = prompts[number // MIXED.samples].token_ids
        for column, (model, got) in enumerate(
            ((student, answer.student_logprobs), (teacher, answer.mixed_teacher_logprobs))
        ):
            gaps[column] = max(gaps[column], largest(got, logprobs(model, prompt, answer.answer_ids)))
    return gaps[0], gaps[1]


def largest(got: Any, want: Any) -> float:
    """The largest distance; a nan is endless."""
    gap = float(np.abs(np.asarray(got) - want).max())
    return gap if np.isfinite(gap) else float("inf")


def passages(longest: int = 20) -> list[Passage]:
    """Two answers to each prompt, of several lengths; where `longest` is short, prompts are too."""
    draw = np.random.default_rng(0)
    return [
        Passage(
            prompt_id=prompt.id,
            prompt_ids=prompt.token_ids[: None if longest >= 20 else longest],
            answer_ids=draw.integers(5, VOCABULARY, draw.integers(2, longest)).astype(np.int32),
        )
        for prompt in some_prompts()
        for _ in range(2)
    ]


def scored(folder: Path) -> float:
    """The teacher's scores, batched as they come."""
    scorer = Scorer.load(str(folder), None, TeacherServerConfig(), VOCABULARY)
    found, _ = scorer.score(passages(), temperature=1.0, with_hidden=False)
    model = reference(folder)
    return max(
        largest(one.teacher_logprobs, logprobs(model, one.passage.prompt_ids, one.passage.answer_ids))
        for one in found
    )


def learned(folder: Path, *, packed: bool) -> float | None:
    """The learner's forward in training mode, with rows shared or not; None where they cannot be."""
    student = load_student(ModelConfig(path=str(folder)), LearnerConfig(), dropout=False)
    head = read_head(student, VOCABULARY)
    check_head(student, head)
    longest = enable_packing(student)
    given = passages(WINDOW // 2) if packed else passages()
    student.train()
    batch = batch_of(given, torch.device("cpu"), hidden=False, max_packed_len=longest if packed else 0)
    if packed and batch.layout is None:
        return None
    with torch.no_grad():
        states = read(student, batch.ids, batch.layout).flatten(0, 1)[batch.positions]
        got = drawn_logprobs(states, head, batch.targets)[0].numpy()
    model = reference(folder)
    return largest(got, np.concatenate([logprobs(model, p.prompt_ids, p.answer_ids) for p in given]))


def record(tell: Callable[..., None], columns: Sequence[str], work: Callable[[], Any]) -> Any:
    """Tell what `work` finds, a number for each column or one for all, or what it raises."""
    try:
        found = work()
    except Exception as error:
        text = f"{type(error).__name__}: {error}".strip()
        traceback.print_exc()
        tell(**{column: text for column in columns})
        return None
    values = found if isinstance(found, tuple) else (found,) * len(columns)
    tell(**dict(zip(columns, values, strict=True)))
    return found


class Measured:
    """One engine process for many families, made anew where one has ended it."""

    def __init__(self, engine: EngineProcess | None = None) -> None:
        self._engine = engine or EngineProcess()

    def measure(self, name: str, folder: Path, tell: Callable[..., None]) -> None:
        """All columns of one family, each told as soon as it is known."""
        student, teacher = make(name, folder / "student"), make(name, folder / "teacher", teacher=True)
        record(tell, ["scorer"], partial(scored, teacher))
        record(tell, ["learner"], partial(learned, student, packed=False))
        record(tell, ["packed"], partial(learned, student, packed=True))
        llama = tiny_model("llama", folder / "llama", seed=3, width=96, layers=1)
        models = {path: reference(path) for path in (student, teacher, llama)}

        def gaps(one: Path, other: Path) -> tuple[float, float]:
            return engine_gaps(self._engine.use(Pair(one, other)), models[one], models[other])

        if record(tell, ["student", "teacher"], partial(gaps, student, teacher)) is not None:
            update = partial(updated, self._engine, models[student], models[teacher])
            record(tell, ["updates"], update)
        else:  # whose fault it is
            self.renew()
            record(tell, ["student"], lambda: gaps(student, llama)[0])
        self.renew(broken_only=True)
        record(tell, ["teacher of another"], lambda: max(gaps(llama, teacher)))
        self.renew(broken_only=True)

    def renew(self, *, broken_only: bool = False) -> None:
        """Another process for the engine."""
        if broken_only and self._engine.alive():
            return
        self._engine.close()
        self._engine = EngineProcess()


def updated(engine: EngineProcess, student: Any, teacher: Any) -> float:
    """The largest gap of both after each of two updates."""
    gap = 0.0
    for version in (1, 2):
        nudge(student, seed=version)
        manifest, buckets = publish(student, version)
        engine.load(manifest, dict(buckets))
        gap = max(gap, *engine_gaps(engine, student, teacher))
    return gap


def main(folder: Path, names: Sequence[str]) -> None:
    """A line for each family that begins, and for each column."""

    def line(**values: Any) -> None:
        sys.stdout.write(json.dumps(values) + "\n")
        sys.stdout.flush()

    measured = Measured()
    for name in names:
        line(family=name)
        record(line, ["made"], lambda name=name: measured.measure(name, folder / name, line) or 0.0)
    measured.renew()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

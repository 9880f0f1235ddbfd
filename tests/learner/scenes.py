"""Answers of tiny models, sampled and scored by hand, for tests of the learner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from minillm_ray.common.config.data import DataConfig, PromptData
from minillm_ray.common.config.run import LearnerConfig, ModelConfig, RunConfig
from minillm_ray.common.heads import final_hidden, read_head
from minillm_ray.common.types import Passage, Rollout, Scored, WeightVersion
from minillm_ray.learner.sharding import Item
from minillm_ray.tests.tiny_models import tiny_model
from transformers import AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 128
LENGTHS = ((3, 7), (5, 1), (2, 4), (6, 2), (4, 9), (2, 3), (7, 5), (3, 6))
"""(prompt tokens, answer tokens) of each answer."""
MAX_NEW_TOKENS = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A student, a teacher, and answers that both have seen."""

    student: Path
    teacher: Path
    samples: list[Scored]
    texts: list[Scored]

    @property
    def head(self) -> dict[str, Any]:
        """The teacher's output layer, as a teacher actor hands it out."""
        head = read_head(model_of(self.teacher), VOCABULARY)
        return {
            "weight": head.weight.detach().numpy(),
            "bias": None,
            "scale": 1.0,
            "soft_cap": None,
            "vocabulary": VOCABULARY,
            "dtype": "float32",
        }


def make_scene(
    folder: Path,
    family: str = "llama",
    *,
    tied: bool = True,
    padding: int = 0,
    lengths: Sequence[tuple[int, int]] = LENGTHS,
) -> Scene:
    """Models in `folder`, and random answers with their exact log-probs at temperature 1 and a mix of 0.2."""
    student = tiny_model(family, folder / "student", seed=1, width=32, layers=2, tied=tied, padding=padding)
    teacher = tiny_model(family, folder / "teacher", seed=2, width=64, layers=2)
    networks = model_of(student), model_of(teacher)
    generator = np.random.default_rng(0)
    drawn = [_passage(generator, f"p/{n}", p, t) for n, (p, t) in enumerate(lengths)]
    blocks = [_passage(generator, f"text/{n}", 1, 6 + n) for n in range(3)]
    return Scene(
        student=student,
        teacher=teacher,
        samples=[score(passage, *networks) for passage in drawn],
        texts=[score(passage, *networks, rollout=False) for passage in blocks],
    )


def model_of(folder: Path) -> PreTrainedModel:
    """The model in a folder, in evaluation mode."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _passage(generator: np.random.Generator, name: str, prompt: int, answer: int) -> Passage:
    ids = generator.integers(0, VOCABULARY, prompt + answer).astype(np.int32)
    return Passage(prompt_id=name, prompt_ids=ids[:prompt], answer_ids=ids[prompt:])


@torch.no_grad()
def score(
    passage: Passage, student: PreTrainedModel, teacher: PreTrainedModel, *, rollout: bool = True
) -> Scored:
    """The passage as both networks see it, by plain forwards of transformers."""
    log_q, log_p = (logprobs(network, passage).detach().numpy() for network in (student, teacher))
    ids = torch.from_numpy(np.concatenate([passage.prompt_ids, passage.answer_ids]).astype(np.int64))[None]
    hidden = final_hidden(teacher, ids)[0, len(passage.prompt_ids) - 1 : -1].numpy()
    seen = passage
    if rollout:
        seen = Rollout(
            prompt_id=passage.prompt_id,
            prompt_ids=passage.prompt_ids,
            answer_ids=passage.answer_ids,
            sample=0,
            behaviour_logprobs=np.log(0.2 * np.exp(log_p) + 0.8 * np.exp(log_q)).astype(np.float32),
            student_logprobs=log_q,
            mixed_teacher_logprobs=log_p,
            oldest=WeightVersion(0),
            newest=WeightVersion(0),
            finish="length",
        )
    return Scored(passage=seen, teacher_logprobs=log_p, plain_teacher_logprobs=log_p, hidden=hidden)


def all_logprobs(model: PreTrainedModel, passage: Passage) -> torch.Tensor:
    """log q of every word at each answer position, [T, V], with gradients."""
    ids = torch.from_numpy(np.concatenate([passage.prompt_ids, passage.answer_ids]).astype(np.int64))
    logits = model(ids[None]).logits[0, len(passage.prompt_ids) - 1 : -1, :VOCABULARY]
    return logits.log_softmax(-1)


def logprobs(model: PreTrainedModel, passage: Passage) -> torch.Tensor:
    """log q of the answer's tokens, [T], with gradients."""
    answer = torch.from_numpy(passage.answer_ids.astype(np.int64))
    return all_logprobs(model, passage).gather(1, answer[:, None])[:, 0]


def run_config(scene: Scene, **changes: Any) -> RunConfig:
    """A run's settings over a scene; keywords are sections, or fields of `learner`."""
    sections = {name: changes.pop(name) for name in list(changes) if name in RunConfig.model_fields}
    learner = {"optimizer": {"lr": 1e-2, "eps": 1e-4}, "micro_batch_size": 3, "max_steps": 20} | changes
    return RunConfig(
        **{
            "student": ModelConfig(path=str(scene.student)),
            "teacher": ModelConfig(path=str(scene.teacher)),
            "data": DataConfig(train=PromptData(path="none.jsonl")),
            "rollout": {"max_new_tokens": MAX_NEW_TOKENS},
            "learner": LearnerConfig(**learner),
        }
        | sections
    )


def items_of(chunk: Any, samples: Sequence[Scored | Passage]) -> list[Item]:
    """Every sample of one chunk, by whatever names the chunk."""
    passages = [sample.passage if isinstance(sample, Scored) else sample for sample in samples]
    return [
        Item(chunk=chunk, position=n, prompt_tokens=len(p.prompt_ids), answer_tokens=len(p.answer_ids))
        for n, p in enumerate(passages)
    ]

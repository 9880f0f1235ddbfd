"""One model, and a teacher to compare it with, as readers: exact figures at every token of given text.

Divergences are sums over the whole shared vocabulary, in chunks of positions: no [tokens, vocabulary] tensor
exists. Knows no Ray.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..common import divergence
from ..common.config.run import ModelConfig, TeacherServerConfig
from ..common.heads import check_head, read_head
from ..common.packed_attention import enable_packing
from ..common.types import BatchSummary, Floats, Ids, Passage, Prompt, sample_of
from .scorer import PackedBatch, batches, check_passage, load_model, num_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PassageMeasure:
    """What a model (q) and a teacher (p) make of one passage, nats at each of its T answer tokens."""

    prompt_id: str
    sample: int
    """0 for an answer that was given, not sampled."""
    logprobs: Floats  # [T] log q of the token
    teacher_logprobs: Floats | None  # [T] log p of the token; None without a teacher, as those below
    forward_kl: Floats | None  # [T] KL(p || q), exact
    reverse_kl: Floats | None  # [T] KL(q || p), exact


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelLogprobs:
    """How likely each label is as the answer to a prompt."""

    prompt_id: str
    logprobs: Floats  # [C] nats, summed over a label's tokens


class Measurer:
    """Reads passages with one model or two. T = answer tokens, C = labels."""

    def __init__(
        self,
        model: PreTrainedModel,
        teacher: PreTrainedModel | None = None,
        *,
        vocabulary: int,
        batch_tokens: int = 2048,
    ):
        """Takes loaded models of one tokenizer. Raises ModelError for a head of an unknown kind."""
        self._teacher, self._vocabulary = teacher.eval() if teacher is not None else None, vocabulary
        self._teacher_head = read_head(teacher, vocabulary) if teacher is not None else None
        if teacher is not None and self._teacher_head is not None:
            check_head(teacher, self._teacher_head)
        self._batch_tokens = batch_tokens
        self.swap_model(model)

    def swap_model(self, model: PreTrainedModel) -> None:
        """Read with another model from now on, beside the same teacher."""
        teacher = self._teacher
        self._model = model.eval()
        self._head = read_head(model, self._vocabulary)
        check_head(model, self._head)
        self._max_packed_len = min(enable_packing(m) for m in (model, teacher) if m is not None)
        known = [
            getattr(m.config.get_text_config(), "max_position_embeddings", None)
            for m in (model, teacher)
            if m is not None
        ]
        self._context = min((positions for positions in known if positions), default=None)

    @classmethod
    def load(
        cls, model: ModelConfig, teacher: ModelConfig | None, settings: TeacherServerConfig, vocabulary: int
    ) -> Measurer:
        """Read both from folders or the hub, onto the GPU if this process has been given one."""

        def loaded(one: ModelConfig, key: str) -> PreTrainedModel:
            return load_model(one.path, one.revision, settings.dtype, key)

        return cls(
            loaded(model, "student"),
            loaded(teacher, "teacher") if teacher is not None else None,
            vocabulary=vocabulary,
            batch_tokens=settings.batch_tokens,
        )

    @torch.inference_mode()
    def measure(
        self, passages: Sequence[Passage], *, compare: bool = True
    ) -> tuple[list[PassageMeasure], BatchSummary]:
        """Figures of each passage, in their order, at temperature 1; `compare` = with the teacher, if any.

        Passages go through in batches. Raises DataError for one that the models cannot read.
        """
        start = time.perf_counter()
        self._check(passages)
        found: dict[int, PassageMeasure] = {}
        lengths = [num_inputs(p) for p in passages]
        for indices in batches(lengths, self._batch_tokens, max_packed_len=self._max_packed_len):
            read = PackedBatch([passages[i] for i in indices], max_packed_len=self._max_packed_len)
            found |= dict(zip(indices, self._measure_batch(read, compare), strict=True))
        return [found[i] for i in range(len(passages))], BatchSummary.of(
            passages, seconds=time.perf_counter() - start
        )

    @torch.inference_mode()
    def choose(
        self, prompts: Sequence[Prompt], labels: Sequence[Ids]
    ) -> tuple[list[LabelLogprobs], BatchSummary]:
        """Log-prob of each label's tokens behind each prompt, by the model alone.

        Labels of one token each take one forward pass of the prompt; longer ones take one for each label.
        """
        start = time.perf_counter()
        passages = [
            Passage(prompt_id=prompt.id, prompt_ids=prompt.token_ids, answer_ids=label)
            for prompt in prompts
            for label in labels
        ]
        self._check(passages)
        if all(len(label) == 1 for label in labels):
            rows = self._next_token_logprobs(prompts, np.concatenate(labels))
        else:
            measured, _ = self.measure(passages, compare=False)
            sums = np.array([m.logprobs.sum(dtype=np.float64) for m in measured], np.float32)
            rows = sums.reshape(len(prompts), len(labels))
        found = [LabelLogprobs(prompt_id=p.id, logprobs=row) for p, row in zip(prompts, rows, strict=True)]
        return found, BatchSummary.of(passages[:: len(labels)], seconds=time.perf_counter() - start)

    def _measure_batch(self, read: PackedBatch, compare: bool) -> list[PassageMeasure]:
        batch = read.passages
        targets = torch.from_numpy(np.concatenate([p.answer_ids for p in batch]).astype(np.int64))
        teacher_hidden = None
        if self._teacher is not None and compare:
            teacher_hidden = read.hidden(self._teacher)
        figures = divergence.measure(
            read.hidden(self._model),
            self._head,
            targets.to(self._model.device),
            teacher_hidden=teacher_hidden,
            teacher=self._teacher_head if teacher_hidden is not None else None,
        )
        ends = np.cumsum([len(p.answer_ids) for p in batch])[:-1]
        columns = [
            _rows(values, ends, len(batch))
            for values in (figures.logprobs, figures.teacher_logprobs, figures.forward_kl, figures.reverse_kl)
        ]
        return [
            PassageMeasure(
                prompt_id=passage.prompt_id,
                sample=sample_of(passage),
                logprobs=logprobs,
                teacher_logprobs=teacher,
                forward_kl=forward,
                reverse_kl=reverse,
            )
            for passage, logprobs, teacher, forward, reverse in zip(batch, *columns, strict=True)
        ]

    def _next_token_logprobs(self, prompts: Sequence[Prompt], tokens: Ids) -> Floats:
        """Log-prob [N, C] of each of the tokens [C] behind each prompt."""
        found = np.empty((len(prompts), len(tokens)), np.float32)
        lengths = [len(p.token_ids) for p in prompts]
        for indices in batches(lengths, self._batch_tokens, max_packed_len=self._max_packed_len):
            batch = [
                Passage(prompt_id=prompts[i].id, prompt_ids=prompts[i].token_ids, answer_ids=tokens[:1])
                for i in indices
            ]
            read = PackedBatch(batch, max_packed_len=self._max_packed_len)
            last = read.hidden(self._model)
            last = last.repeat_interleave(len(tokens), 0)
            wanted = torch.from_numpy(tokens.astype(np.int64)).to(last.device).repeat(len(batch))
            logprobs = divergence.drawn_logprobs(last, self._head, wanted)[0]
            found[indices] = logprobs.view(len(batch), len(tokens)).cpu().numpy()
        return found

    def _check(self, passages: Sequence[Passage]) -> None:
        for passage in passages:
            check_passage(passage, self._context, self._head.vocabulary, "the model")


def _rows(values: Tensor | None, ends: np.ndarray, count: int) -> list[Floats] | list[None]:
    if values is None:
        return [None] * count
    # Copies: a slice would keep the whole batch alive, and travel with it.
    return [part.copy() for part in np.split(values.float().cpu().numpy(), ends)]

"""The teacher as a reader: passages in, log-probs and hidden states of their answers out. Knows no Ray."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..common.config import Precision, ScoringConfig
from ..common.errors import DataError, ModelError
from ..common.heads import check_head, final_hidden, longest_shared, read_head
from ..common.messages import BatchSummary, Passage, Rollout, Scored
from ..common.packing import pack

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK_LOGITS = 1 << 24
"""Logits that exist at a time: 64 MiB in float32, and the same again for their exponentials."""


class Reading:
    """Passages laid out for one forward pass of any model that reads them."""

    def __init__(self, passages: Sequence[Passage], *, together: int, most_slots: int | None = None):
        self.passages = list(passages)
        read = [np.concatenate([p.prompt_ids, p.answer_ids[:-1]]) for p in passages]
        self.packed = pack(read, together=together, most_slots=most_slots)

    def hidden(self, model: PreTrainedModel) -> Tensor:
        """The states that predict the answers' tokens: [sum of T, H], passage after passage."""
        packed = self.packed
        ids, places, sees = (
            None if array is None else torch.from_numpy(array).to(model.device)
            for array in (packed.ids, packed.places, packed.sees)
        )
        assert ids is not None
        states = final_hidden(model, ids, places=places, sees=sees)
        positions = [s[len(p.prompt_ids) - 1 :] for s, p in zip(packed.slots, self.passages, strict=True)]
        return states.flatten(0, 1)[torch.from_numpy(np.concatenate(positions)).to(states.device)]


class Scorer:
    """One teacher, one forward pass per passage.

    T = answer tokens, H = width of the hidden states, V = words shared by teacher and student.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        vocabulary: int,
        batch_tokens: int = 2048,
        hidden_precision: Precision = "float32",
    ):
        """Takes a loaded model. Raises ModelError for an output layer that common.heads does not know."""
        self._model = model.eval()
        self._head = read_head(model, vocabulary)
        check_head(model, self._head)
        self._together = longest_shared(model)
        self._batch_tokens = batch_tokens
        self._hidden_precision: Precision = hidden_precision
        self._context = getattr(model.config.get_text_config(), "max_position_embeddings", None)

    @classmethod
    def load(cls, path: str, revision: str | None, settings: ScoringConfig, vocabulary: int) -> Scorer:
        """Read the teacher from a folder or the hub, onto the GPU if this process has been given one."""
        model = load_model(path, revision, settings.precision, "teacher")
        return cls(
            model,
            vocabulary=vocabulary,
            batch_tokens=settings.batch_tokens,
            hidden_precision=settings.hidden_precision,
        )

    @torch.inference_mode()
    def score(
        self, passages: Sequence[Passage], *, temperature: float, with_hidden: bool
    ) -> tuple[list[Scored], BatchSummary]:
        """Score passages; results are in their order.

        Log-probs are nats over the shared vocabulary, once at `temperature` and once at 1. Hidden states
        [T, H] are those that predict the answer's tokens. Passages go through in batches of at most
        `batch_tokens` slots with padding; a longer passage goes alone. Raises DataError for a passage that
        the teacher cannot read.
        """
        start = time.perf_counter()
        for passage in passages:
            check_passage(passage, self._context, self._head.vocabulary, "the teacher")
        found: dict[int, Scored] = {}
        slots = used = 0
        lengths = [num_inputs(p) for p in passages]
        for places in batches(lengths, self._batch_tokens, together=self._together):
            read = Reading(
                [passages[i] for i in places], together=self._together, most_slots=self._batch_tokens
            )
            slots, used = slots + read.packed.ids.size, used + read.packed.used
            scored = self._score_batch(read, temperature, with_hidden)
            found |= dict(zip(places, scored, strict=True))
        summary = BatchSummary(
            prompt_ids=tuple(p.prompt_id for p in passages),
            samples=tuple(p.sample if isinstance(p, Rollout) else 0 for p in passages),
            prompt_tokens=tuple(len(p.prompt_ids) for p in passages),
            answer_tokens=tuple(len(p.answer_ids) for p in passages),
            seconds=time.perf_counter() - start,
            metrics={"teacher/padding": (float(slots - used), float(slots))} if slots else {},
        )
        return [found[i] for i in range(len(passages))], summary

    def head(self) -> dict[str, Any]:
        """The output layer as arrays, cut to the shared vocabulary: the fields of common.heads.Head.

        `weight` [V, H] and `bias` [V] or None are in `dtype`; "bfloat16" means bits in uint16.
        """
        head = self._head
        return {
            "weight": _array(head.weight.detach()[: head.vocabulary]),
            "bias": None if head.bias is None else _array(head.bias.detach()[: head.vocabulary]),
            "scale": head.scale,
            "soft_cap": head.soft_cap,
            "vocabulary": head.vocabulary,
            "dtype": str(head.weight.dtype).removeprefix("torch."),
        }

    def _score_batch(self, read: Reading, temperature: float, with_hidden: bool) -> list[Scored]:
        batch, flat = read.passages, read.hidden(self._model)
        lengths = [len(p.answer_ids) for p in batch]
        targets = torch.from_numpy(np.concatenate([p.answer_ids for p in batch]).astype(np.int64))
        tempered, plain = self._logprobs(flat, targets.to(flat.device), temperature)
        ends = np.cumsum(lengths)[:-1]
        states: list[Any] = [None] * len(batch)
        if with_hidden:
            kept = flat.to(getattr(torch, self._hidden_precision))
            states = [_array(part) for part in kept.split(lengths)]
        return [
            # copies: a slice would keep the whole batch alive, and travel with it
            Scored(
                passage=passage,
                teacher_logprobs=one.copy(),
                plain_teacher_logprobs=two.copy(),
                hidden=state,
                hidden_dtype=self._hidden_precision if with_hidden else "float32",
            )
            for passage, one, two, state in zip(
                batch, np.split(tempered, ends), np.split(plain, ends), states, strict=True
            )
        ]

    def _logprobs(
        self, hidden: Tensor, targets: Tensor, temperature: float
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Log p of `targets` [N] after `hidden` [N, H], at `temperature` and at 1, chunk by chunk."""
        rows = max(1, CHUNK_LOGITS // self._head.vocabulary)
        tempered, plain = [], []
        for part, wanted in zip(hidden.split(rows), targets.split(rows), strict=True):
            logits = self._head.logits(part).float()
            target = logits.gather(1, wanted[:, None])[:, 0]
            plain.append(target - logits.logsumexp(1))
            if temperature != 1.0:
                tempered.append(target / temperature - logits.div_(temperature).logsumexp(1))
        ones = torch.cat(plain).cpu().numpy()
        return (torch.cat(tempered).cpu().numpy() if tempered else ones), ones


def load_model(path: str, revision: str | None, precision: Precision, key: str) -> PreTrainedModel:
    """A model to read with, on the GPU if this process has one; `key` is the setting that names it.

    Raises ModelError if there is none at `path`, a folder or a name on the hub.
    """
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            path,
            revision=revision,
            dtype=getattr(torch, precision),
            use_safetensors=True,
            trust_remote_code=False,
        )
    except OSError as missing:
        raise ModelError(
            f"{key}.path = {path} cannot be loaded: {missing}; give a folder or hub name of a"
            " causal language model in safetensors"
        ) from missing
    if torch.cuda.is_available():
        # transformers wraps model.cuda in a way that type checkers cannot read
        torch.nn.Module.cuda(model)
    return model


def batches(lengths: Sequence[int], batch_tokens: int, *, together: int = 0) -> Iterator[list[int]]:
    """Places of `lengths`, grouped so that a group takes at most batch_tokens slots.

    Where passages share rows (none is longer than `together`) they stay in their order, so that those to one
    prompt meet, and a group takes their sum at most. Else the longest come first, count x longest slots each.
    """
    group: list[int] = []
    total = 0
    shared = max(lengths, default=0) <= together
    for place in range(len(lengths)) if shared else sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        grown = total + lengths[place] if shared else (len(group) + 1) * lengths[(group or [place])[0]]
        if group and grown > batch_tokens:
            yield group
            group, total = [], 0
        group.append(place)
        total += lengths[place]
    if group:
        yield group


def check_passage(passage: Passage, context: int | None, vocabulary: int, reader: str) -> None:
    """Raises DataError for a passage that `reader` cannot read: empty, too long, or with foreign tokens."""
    if not len(passage.prompt_ids) or not len(passage.answer_ids):
        raise DataError(
            f"{passage.prompt_id}: {len(passage.prompt_ids)} prompt and {len(passage.answer_ids)} answer"
            " tokens; each must have at least one"
        )
    if context and num_inputs(passage) > context:
        raise DataError(
            f"{passage.prompt_id}: {num_inputs(passage)} tokens do not fit into {reader}'s context of"
            f" {context}; lower data.max_prompt_tokens, rollout.max_new_tokens or text.block_tokens"
        )
    highest = max(int(passage.prompt_ids.max()), int(passage.answer_ids.max()))
    if highest >= vocabulary:
        raise DataError(
            f"{passage.prompt_id}: token id {highest} lies outside the {vocabulary} words that"
            " teacher and student share; remove the record or use models that know the token"
        )


def num_inputs(passage: Passage) -> int:
    """Tokens that a model reads of it: all but the last, which nothing follows."""
    return len(passage.prompt_ids) + len(passage.answer_ids) - 1


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    """An array of its own; bfloat16, which numpy does not have, as its bits."""
    tensor = tensor.contiguous().cpu()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy().copy()

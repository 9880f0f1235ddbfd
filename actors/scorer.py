"""The teacher as a reader: passages in, log-probs and hidden states of their answers out. Knows no Ray."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..common import onednn_linear
from ..common.arrays import array_of, tensor_of
from ..common.config.base import Dtype
from ..common.config.run import TeacherServerConfig
from ..common.divergence import drawn_logprobs
from ..common.errors import DataError, ModelError
from ..common.heads import check_head, read_head
from ..common.packed_attention import Layout, enable_packing, read
from ..common.packing import pack
from ..common.transformers_compat import exact_attention
from ..common.types import BatchSummary, Floats, Passage, Scored

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PackedBatch:
    """Passages laid out for one forward pass of any model that reads them."""

    def __init__(self, passages: Sequence[Passage], *, max_packed_len: int):
        self.passages = list(passages)
        read = [np.concatenate([p.prompt_ids, p.answer_ids[:-1]]) for p in passages]
        self.packed = pack(read, max_packed_len=max_packed_len)

    def hidden(self, model: PreTrainedModel) -> Tensor:
        """The states that predict the answers' tokens: [sum of T, H], passage after passage."""
        packed = self.packed
        ids = torch.from_numpy(packed.ids).to(model.device)
        states = read(model, ids, Layout.of(packed, model.device))
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
        hidden_dtype: Dtype = "float32",
    ):
        """Takes a loaded model. Raises ModelError for an output layer that common.heads does not know."""
        self._model = model.eval()
        self._head = read_head(model, vocabulary)
        check_head(model, self._head)
        self._max_packed_len = enable_packing(model)
        self._batch_tokens = batch_tokens
        self._hidden_dtype: Dtype = hidden_dtype
        self._context = getattr(model.config.get_text_config(), "max_position_embeddings", None)

    @classmethod
    def load(cls, path: str, revision: str | None, settings: TeacherServerConfig, vocabulary: int) -> Scorer:
        """Read the teacher from a folder or the hub, onto the GPU if this process has been given one."""
        model = load_model(path, revision, settings.dtype, "teacher")
        return cls(
            model,
            vocabulary=vocabulary,
            batch_tokens=settings.batch_tokens,
            hidden_dtype=settings.hidden_dtype,
        )

    @torch.inference_mode()
    def score(
        self,
        passages: Sequence[Passage],
        *,
        temperature: float,
        with_hidden: bool,
        with_logprobs: bool = True,
    ) -> tuple[list[Scored], BatchSummary]:
        """Score passages; results are in their order.

        Log-probs are nats over the shared vocabulary, once at `temperature` and once at 1; they take a
        product with the output layer. Hidden states [T, H] are those that predict the answer's tokens.
        Passages go through in batches of at most `batch_tokens` slots with padding; a longer passage goes
        alone. Raises DataError for a passage that the teacher cannot read.
        """
        start = time.perf_counter()
        for passage in passages:
            check_passage(passage, self._context, self._head.vocabulary, "the teacher")
        found: dict[int, Scored] = {}
        slots = used = 0
        lengths = [num_inputs(p) for p in passages]
        for indices in batches(lengths, self._batch_tokens, max_packed_len=self._max_packed_len):
            reading = PackedBatch([passages[i] for i in indices], max_packed_len=self._max_packed_len)
            slots, used = slots + reading.packed.ids.size, used + reading.packed.used
            scored = self._score_batch(
                reading, temperature, with_hidden=with_hidden, with_logprobs=with_logprobs
            )
            found |= dict(zip(indices, scored, strict=True))
        summary = BatchSummary.of(
            passages,
            seconds=time.perf_counter() - start,
            metrics={"teacher/padding": (float(slots - used), float(slots))} if slots else {},
        )
        return [found[i] for i in range(len(passages))], summary

    def states_gap(self, given: Scored) -> float:
        """How far states of the teacher are from its own: largest distance over length, token by token.

        For states that an engine has computed; other log-probs of the answer's tokens count too, in nats.
        """
        (own,), _ = self.score([given.passage], temperature=1.0, with_hidden=True)
        assert own.hidden is not None
        assert given.hidden is not None
        assert own.teacher_logprobs is not None
        assert given.teacher_logprobs is not None
        mine, theirs = (
            tensor_of(hidden, dtype).float()
            for hidden, dtype in ((own.hidden, own.hidden_dtype), (given.hidden, given.hidden_dtype))
        )
        distance = float(((theirs - mine).norm(dim=-1) / mine.norm(dim=-1)).max())
        return max(distance, float(np.abs(own.teacher_logprobs - given.teacher_logprobs).max()))

    def head(self) -> dict[str, Any]:
        """The output layer as arrays, cut to the shared vocabulary: the fields of common.heads.Head.

        `weight` [V, H] and `bias` [V] or None are in `dtype`; "bfloat16" means bits in uint16.
        """
        head = self._head
        return {
            "weight": array_of(head.weight.detach()[: head.vocabulary]),
            "bias": None if head.bias is None else array_of(head.bias.detach()[: head.vocabulary]),
            "scale": head.scale,
            "soft_cap": head.soft_cap,
            "vocabulary": head.vocabulary,
            "dtype": str(head.weight.dtype).removeprefix("torch."),
        }

    def _score_batch(
        self, reading: PackedBatch, temperature: float, *, with_hidden: bool, with_logprobs: bool
    ) -> list[Scored]:
        batch, flat = reading.passages, reading.hidden(self._model)
        lengths = [len(p.answer_ids) for p in batch]
        nothing: list[Any] = [None] * len(batch)
        plain = tempered = states = nothing
        if with_logprobs:
            targets = torch.from_numpy(np.concatenate([p.answer_ids for p in batch]).astype(np.int64))
            temperatures = (1.0, temperature)[: 1 + (temperature != 1)]
            found = drawn_logprobs(flat, self._head, targets.to(flat.device), temperatures=temperatures)
            plain, tempered = (
                [array_of(part) for part in values.split(lengths)] for values in (found[0], found[-1])
            )
        if with_hidden:
            kept = flat.to(getattr(torch, self._hidden_dtype))
            states = [array_of(part) for part in kept.split(lengths)]
        return [
            Scored(
                passage=passage,
                teacher_logprobs=one,
                plain_teacher_logprobs=two,
                hidden=state,
                hidden_dtype=self._hidden_dtype if with_hidden else "float32",
            )
            for passage, one, two, state in zip(batch, tempered, plain, states, strict=True)
        ]


def load_model(path: str, revision: str | None, precision: Dtype, key: str) -> PreTrainedModel:
    """A model to read with, on the GPU if this process has one; `key` is the setting that names it.

    Raises ModelError if there is none at `path`, a folder or a name on the hub.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            path,
            revision=revision,
            config=config,
            attn_implementation=exact_attention(config),
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
    onednn_linear.use_in(model)
    return model


def batches(lengths: Sequence[int], batch_tokens: int, *, max_packed_len: int = 0) -> Iterator[list[int]]:
    """Indices of `lengths`, grouped so that a group takes at most batch_tokens slots.

    Where passages are packed (none is longer than `max_packed_len`) they stay in their order, so that those
    to one prompt come together, and a group takes their sum at most. Else the longest come first, count x
    longest slots each.
    """
    group: list[int] = []
    total = 0
    shared = max(lengths, default=0) <= max_packed_len
    for index in range(len(lengths)) if shared else sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        grown = total + lengths[index] if shared else (len(group) + 1) * lengths[(group or [index])[0]]
        if group and grown > batch_tokens:
            yield group
            group, total = [], 0
        group.append(index)
        total += lengths[index]
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


def read_plainly(
    path: str, revision: str | None, dtype: Dtype, vocabulary: int, passages: Sequence[Passage]
) -> list[Floats]:
    """log-probs [T] of each answer at temperature 1 over the first `vocabulary` words, in nats.

    The referee of the parity check: one passage at a time, eager attention, nothing packed or replaced.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        path,
        revision=revision,
        dtype=getattr(torch, dtype),
        attn_implementation="eager",
        use_safetensors=True,
        trust_remote_code=False,
    ).eval()
    if torch.cuda.is_available():
        torch.nn.Module.cuda(model)
    found: list[Floats] = []
    with torch.inference_mode():
        for passage in passages:
            ids = torch.tensor(
                [[*passage.prompt_ids.tolist(), *passage.answer_ids.tolist()]], device=model.device
            )
            answer = ids[0, len(passage.prompt_ids) :]
            logits = model(ids, use_cache=False).logits[0, len(passage.prompt_ids) - 1 : -1, :vocabulary]
            logprobs = logits.float().log_softmax(-1).gather(1, answer[:, None])[:, 0]
            found.append(logprobs.cpu().numpy())
    return found

"""The model that vLLM runs: a student, and a teacher beside it if the run mixes one in.

vLLM pages the keys and values of both networks in one pool and sees one model whose output is the
distribution to draw from. Every process that runs vLLM learns this class by the entry point
`vllm.general_plugins`, which calls `register`.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import vllm_compat
from .checkpoint_files import weight_files
from .mixing import Mixture, Step
from .shared_prefill import Requests, SharedPrefill

if TYPE_CHECKING:
    from vllm.config import VllmConfig

ARCHITECTURE = "TeacherMixedForCausalLM"
WEIGHT_TRANSFER = "object_store"
TEACHER = "teacher."
"""Prefix of the teacher's weights while vLLM loads the two checkpoints one after the other."""


@functools.cache
def register() -> None:
    """Register the mixture model and its way of weight transfer with vLLM; builds nothing."""
    from vllm.model_executor.models import ModelRegistry

    ModelRegistry.register_model(ARCHITECTURE, TeacherMixedForCausalLM)
    vllm_compat.register_weight_transfer(
        WEIGHT_TRANSFER, "minillm_ray.actors.vllm_weights", "ObjectStoreEngine"
    )


def overrides(student: str, teacher: str | None, vocabulary: int) -> dict[str, Any]:
    """What vLLM's `hf_overrides` needs to run a student's folder as a mixture."""
    return {
        "architectures": [ARCHITECTURE],
        "teacher_mix": {"student": student, "teacher": teacher, "vocabulary": vocabulary},
    }


class TeacherMixedForCausalLM(nn.Module):
    """Student and teacher as one model.

    `mixture` says how the two become one distribution; it may change whenever no answer is under way.
    Where its alpha is 0 the teacher does not run, so its keys and values are missing from the cache.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        block = vllm_config.model_config.hf_config.teacher_mix
        self.vocabulary: int = block["vocabulary"]
        self.mixture = Mixture()
        self.step: Step | None = None
        """The distributions of the step under way, for the sampler to look up what it drew."""
        self.teacher_hidden: Tensor | None = None
        """[N, H] what the teacher's output layer read in that step; None where alpha is 0."""
        self._student_width = 0
        self._prefill: SharedPrefill | None = None
        self.student = _network(vllm_config, prefix, "student", block["student"])
        self.teacher = None
        files = [(file, "") for file in weight_files(Path(block["student"]))]
        if block["teacher"] is not None:
            self.teacher = _network(vllm_config, prefix, "teacher", block["teacher"])
            files += [(file, TEACHER) for file in weight_files(Path(block["teacher"]))]
        vllm_compat.load_only(self, files)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """The student's embedding; vLLM asks every model for one."""
        return self.student.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Both networks' last hidden states side by side; the student's alone where alpha is 0."""
        if self._prefill is None:
            return self._hidden(input_ids, positions)
        with self._prefill.rows(input_ids, positions) as (ids, position_ids, alike):
            hidden = self._hidden(ids, position_ids)
        return hidden if alike is None else hidden.index_select(0, alike.owners)

    def _hidden(self, ids: Tensor, positions: Tensor) -> Tensor:
        hidden = self.student(ids, positions)
        self._student_width = hidden.shape[-1]
        if self.mixture.teacher_mix == 0 or self.teacher is None:
            return hidden
        return torch.cat([hidden, self.teacher(ids, positions)], -1)

    def share_prefill(self, requests: Callable[[], Requests]) -> None:
        """Compute common prefixes once; `requests` describes the step under way.

        Nothing changes for a network with layers that mix tokens in another way than attention does, or
        whose attention is not causal.
        """
        layers = vllm_compat.plain_attention(self)
        if layers is not None:
            self._prefill = SharedPrefill(layers, requests)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """p~ [N, vocabulary] for `MixtureSampler`, which draws from it: no logits, whatever the name.

        Tokens beyond the common vocabulary do not exist here.
        """
        width = self._student_width
        student_logits = self._logits(self.student, hidden[:, :width])
        self.teacher_hidden = teacher_logits = None
        if hidden.shape[-1] > width:
            self.teacher_hidden = hidden[:, width:].contiguous()
            teacher_logits = self._logits(self.teacher, self.teacher_hidden)
        self.step = self.mixture.step(student_logits, teacher_logits)
        return self.step.mass

    def _logits(self, network: Any, hidden: Tensor) -> Tensor:
        return network.compute_logits(hidden.contiguous())[:, : self.vocabulary]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Take the student's checkpoint, then the teacher's (its names under `teacher.`)."""
        loaded: set[str] = set()
        stream = iter(weights)
        held: list[tuple[str, Tensor]] = []

        def students() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in stream:
                if name.startswith(TEACHER):
                    held.append((name, tensor))
                    return
                yield name, tensor

        def teachers() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in (*held, *stream):
                yield name.removeprefix(TEACHER), tensor

        loaded |= {f"student.{name}" for name in self.student.load_weights(students())}
        if held:
            assert self.teacher is not None
            loaded |= {f"teacher.{name}" for name in self.teacher.load_weights(teachers())}
        return loaded

    @torch.no_grad()
    def teacher_checksum(self) -> int | None:
        """crc32 of all that the teacher computes with; None without a teacher.

        On CPUs the weights of a linear layer are packed inside its kernel and cannot be read, so the checksum
        is that of its output for fixed inputs.
        """
        if self.teacher is None:
            return None
        crc = 0
        for tensor in (*self.teacher.parameters(), *self.teacher.buffers()):
            crc = zlib.crc32(_bytes(tensor), crc)
        visible = next(parameter for parameter in self.teacher.parameters() if parameter.numel())
        for width, apply in vllm_compat.layers_with_kernels(self.teacher):
            probe = torch.randn(8, width, generator=torch.Generator().manual_seed(0))
            crc = zlib.crc32(_bytes(apply(probe.to(visible))), crc)
        return crc


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8).cpu().numpy()


def _network(vllm_config: VllmConfig, prefix: str, role: str, path: str) -> Any:
    from transformers import AutoConfig

    return vllm_compat.make_network(vllm_config, prefix, role, AutoConfig.from_pretrained(path))

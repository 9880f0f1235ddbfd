"""The model that vLLM runs: a student, and a teacher beside it if the run mixes one in.

vLLM pages the keys and values of both networks in one pool and sees one model whose output is the
distribution to draw from. Every process that runs vLLM learns this class by the entry point
`vllm.general_plugins`, which calls `register`.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..common.errors import Fault, MinillmError, ModelError, told
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
        self._paths = {role: block[role] for role in ("student", "teacher")}
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
        mixed = self.mixture.teacher_mix > 0 and self.teacher is not None
        networks = ("student", "teacher") if mixed else ("student",)
        if self._prefill is None:
            return self._hidden(networks, input_ids, positions)
        with self._prefill.rows(input_ids, positions, networks) as (ids, position_ids, alike):
            hidden = self._hidden(networks, ids, position_ids)
        return hidden if alike is None else hidden.index_select(0, alike.owners)

    def _hidden(self, networks: Sequence[str], ids: Tensor, positions: Tensor) -> Tensor:
        found = [getattr(self, network)(ids, positions) for network in networks]
        self._student_width = found[0].shape[-1]
        return found[0] if len(found) == 1 else torch.cat(found, -1)

    def share_prefill(self, requests: Callable[[], Requests]) -> None:
        """Compute common prefixes once; `requests` describes the step under way.

        Nothing changes for a network with layers that mix tokens in another way than attention does, whose
        attention is not causal, or that goes past the layers it was given.
        """
        if vllm_compat.plain_attention(self) is None:
            return
        networks = {"student": self.student, "teacher": self.teacher}
        layers = {
            name: vllm_compat.plain_attention(network) or []
            for name, network in networks.items()
            if network is not None
        }
        self._prefill = SharedPrefill(layers, requests)

    @property
    def shares_prefill(self) -> bool:
        """Whether common prefixes are computed once."""
        return self._prefill is not None and self._prefill.on

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

        with _refusing("student", self._paths["student"]):
            loaded |= {f"student.{name}" for name in self.student.load_weights(students())}
        if held:
            assert self.teacher is not None
            with _refusing("teacher", self._paths["teacher"]):
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
    with _refusing(role, path):
        return vllm_compat.make_network(vllm_config, prefix, role, path)


@contextmanager
def _refusing(role: str, path: str) -> Iterator[None]:
    """Raises ModelError where vLLM cannot make or load this model, whatever it raises itself."""
    try:
        yield
    except MinillmError:
        raise
    except Exception as error:
        raise ModelError(
            Fault(
                f"{role}.path",
                path,
                f"cannot be run by vLLM: {told(error)}",
                "use a model of another family; those that were tried are in docs/reference/families.md",
            )
        ) from error

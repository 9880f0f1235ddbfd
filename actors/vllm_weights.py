"""Student weights out of an object store into a running vLLM engine, through vLLM's own extension point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..common.arrays import bits_of, tensor_of
from ..common.errors import ModelError
from ..common.transformers_compat import as_saved
from ..common.types import WeightVersion
from ..common.weights import TensorForm, WeightBucket, WeightManifest, checksum
from . import vllm_compat
from .vllm_compat import (
    ParallelLMHead,
    VocabParallelEmbedding,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from .weight_prefetcher import Received

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WRITES_ITSELF = ("GptOssForCausalLM",)
"""vLLM's models that write experts and sinks where they lie, past the loaders that a reload waits for."""

Shapes = dict[str, tuple[int, ...]]


@dataclass
class InitInfo(WeightTransferInitInfo):
    """Nothing to agree on beforehand: a manifest says all."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """One whole update."""

    manifest: WeightManifest
    received: Sequence[Received]
    """What came of each bucket."""


class ObjectStoreEngine(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Loads a manifest's buckets into the student of a mixture model, and into nothing else.

    vLLM repacks weights when it loads them and throws the originals away, so an update runs its
    layerwise reload. The buckets are checked before the first tensor moves: a damaged update leaves
    the old weights as they are.
    """

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Learn what a manifest must hold; fails early on a student whose head could not follow."""
        paths = self.model_config.hf_config.teacher_mix
        with vllm_compat.as_in_engine(self.vllm_config):
            self._skeleton = skeleton(paths["student"])
            self._tied = _heads_that_follow(self._skeleton, self._student)
            followers = list(self._tied)
            teacher: Any = self.model.teacher
            if teacher is not None:
                followers += _heads_that_follow(skeleton(paths["teacher"]), teacher)
        self._shapes = {name: tuple(one.shape) for name, one in self._skeleton.named_parameters()}
        for head, embedding in followers:
            vllm_compat.use_weights_of(head, embedding)
        self._begun = False

    def start_weight_update(self) -> None:
        """Nothing yet: the student is opened up only for a manifest that has been checked."""

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Check all buckets, then load them."""
        manifest, received = update_info.manifest, update_info.received
        check_manifest(manifest, received, self._shapes)
        self._begun = True
        vllm_compat.release_packed(self._student)
        in_place = _vocabulary(self._student, followers=[head for head, _ in self._tied])
        if type(self._student).__name__ in WRITES_ITSELF:
            in_place += [
                module for module in self._student.modules() if _holds(module, "sinks", "w13_weight")
            ]
        vllm_compat.begin_layerwise_reload(self._student, in_place)
        saved = as_saved(self._skeleton, dict(tensors(manifest, received)))
        self._student.load_weights(iter(saved.items()))

    def finish_weight_update(self) -> None:
        """Close the student again, with a head that follows its embedding."""
        if not self._begun:
            return
        self._begun = False
        followers = [head for head, _ in self._tied]
        old = vllm_compat.end_layerwise_reload(self._student, self.model_config, followers)
        for head, embedding in self._tied:
            vllm_compat.use_weights_of(head, embedding)
        if old:
            raise ModelError(
                f"{type(self._student).__name__} took no new weights for {', '.join(old[:3])}"
                f" ({len(old)} layers): vLLM loads it in a way that updates do not reach; use another family"
            )

    def shutdown(self) -> None:
        """No connection is held."""

    @property
    def _student(self) -> Any:
        return self.model.student


def _heads_that_follow(
    model: PreTrainedModel, network: nn.Module
) -> list[tuple[ParallelLMHead, VocabParallelEmbedding]]:
    """See `_tied`. Refuses a network that answers otherwise than the model, or would after an update."""
    own, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    heads = [module for module in network.modules() if isinstance(module, ParallelLMHead)]
    found, kind = _tied(network), type(network).__name__
    if own is not None and own.weight is not embedding.weight:
        if not heads:
            raise ModelError(
                f"{kind}: vLLM takes the embedding of this family for its output layer, and this model has"
                " one of its own (tie_word_embeddings = false); use a model whose layers are tied"
            )
    elif len(heads) != len(found):
        raise ModelError(
            f"{kind} ties its output layer in a way that is not known here ({len(heads)} heads,"
            f" {len(found)} of them with an embedding's weights): vLLM would answer with another; use a model"
            " whose output layer is its own"
        )
    return found


def manifest_of(model: str, version: WeightVersion, dtype: str) -> WeightManifest:
    """The weights of a folder as an update: a bucket for each parameter, whose reference is what it holds."""
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype), use_safetensors=True)
    buckets: list[WeightBucket] = []
    for name, parameter in network.named_parameters():
        arrays = [bits_of(parameter.detach())]
        form = TensorForm(name=name, shape=tuple(parameter.shape), dtype=dtype)
        buckets.append(WeightBucket(ref=arrays, tensors=(form,), checksum=checksum(arrays)))
    return WeightManifest(version=version, buckets=tuple(buckets))


def skeleton(model: str) -> PreTrainedModel:
    """A model without memory: names and shapes of its parameters, a tied head but once."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))


def check_manifest(manifest: WeightManifest, received: Sequence[Received], expected: Shapes) -> None:
    """Refuse damaged buckets, and tensors that are not exactly those expected. Raises ModelError."""
    version = manifest.version
    for number, (bucket, came) in enumerate(zip(manifest.buckets, received, strict=True)):
        if bucket.views(came.arrays) is None:
            raise ModelError(
                f"bucket {number} of weights {version} holds other arrays than its manifest says;"
                " publish the weights again"
            )
        if came.checksum != bucket.checksum:
            raise ModelError(
                f"bucket {number} of weights {version} is damaged: its checksum is not that of the"
                " manifest; publish the weights again"
            )
    found = {form.name: form.shape for bucket in manifest.buckets for form in bucket.tensors}
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            raise ModelError(
                f"weights {version} do not fit the student in this engine: {name} has shape"
                f" {found.get(name, 'none')} in the manifest and {expected.get(name, 'none')} in the"
                " student; both sides must load the same model"
            )


def tensors(manifest: WeightManifest, received: Sequence[Received]) -> Iterator[tuple[str, Tensor]]:
    """All tensors of an update, without a copy; they are for reading only."""
    for bucket, came in zip(manifest.buckets, received, strict=True):
        for form, array in zip(bucket.tensors, bucket.views(came.arrays) or (), strict=True):
            yield form.name, tensor_of(array, form.dtype)


def _tied(network: nn.Module) -> list[tuple[ParallelLMHead, VocabParallelEmbedding]]:
    """Output layers with the embeddings whose weights they share; none where the embedding itself is one."""
    layers = [module for module in network.modules() if isinstance(module, VocabParallelEmbedding)]
    heads = [layer for layer in layers if isinstance(layer, ParallelLMHead)]
    return [(h, e) for h in heads for e in layers if e not in heads and h.weight is e.weight]


def _holds(module: nn.Module, *names: str) -> bool:
    return any(name in names for name, _ in module.named_parameters(recurse=False))


def _vocabulary(student: nn.Module, followers: Sequence[nn.Module]) -> list[nn.Module]:
    """Embeddings and heads, whose weights never change their form; heads that follow an embedding left out.

    Such a head gets what the embedding has when a reload is over; before, it would be packed twice.
    """
    layers = [module for module in student.modules() if isinstance(module, VocabParallelEmbedding)]
    return [layer for layer in layers if layer not in followers]

"""All of vLLM that its documentation does not promise, under names of our own.

The environment must be settled before vLLM is imported, so importing this module does not import it.
"""

from __future__ import annotations

import copy
import functools
import glob
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common import compat
from ..common.packing import Ints, Tokens

if TYPE_CHECKING:
    from torch import Tensor, nn
    from vllm.config import VllmConfig
    from vllm.distributed.weight_transfer.base import WeightTransferEngine as WeightTransferEngine
    from vllm.distributed.weight_transfer.base import WeightTransferInitInfo as WeightTransferInitInfo
    from vllm.distributed.weight_transfer.base import WeightTransferUpdateInfo as WeightTransferUpdateInfo
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead as ParallelLMHead
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        VocabParallelEmbedding as VocabParallelEmbedding,
    )
    from vllm.v1.engine.llm_engine import LLMEngine as LLMEngine
    from vllm.v1.outputs import SamplerOutput as SamplerOutput

LIBRARY = "vllm"

_ENGINE = "vllm.v1.engine.llm_engine.LLMEngine"
_WORKER = "vllm.v1.worker.gpu_worker.Worker"
_RUNNER = "vllm.v1.worker.gpu_model_runner.GPUModelRunner"
_BATCH = "vllm.v1.worker.gpu_input_batch.InputBatch"
_GROUPS = "vllm.distributed.parallel_state"
_TRANSFER = "vllm.distributed.weight_transfer"
_LAYERS = "vllm.model_executor.layers"
_LOADER = "vllm.model_executor.model_loader"
_MODEL = "vllm.config.ModelConfig"
_CONFIGS = "vllm.transformers_utils.config"
_COUNTED = f"{_LOADER}.reload.utils.get_tensor_load_numel"
_INFO = f"{_LOADER}.reload.types.LayerReloadingInfo"
_EMBEDDING = f"{_LAYERS}.vocab_parallel_embedding.VocabParallelEmbedding"

_CLASSES = {
    "LLMEngine": _ENGINE,
    "ParallelLMHead": f"{_LAYERS}.vocab_parallel_embedding.ParallelLMHead",
    "SamplerOutput": "vllm.v1.outputs.SamplerOutput",
    "VocabParallelEmbedding": _EMBEDDING,
    "WeightTransferEngine": f"{_TRANSFER}.base.WeightTransferEngine",
    "WeightTransferInitInfo": f"{_TRANSFER}.base.WeightTransferInitInfo",
    "WeightTransferUpdateInfo": f"{_TRANSFER}.base.WeightTransferUpdateInfo",
}
"""Classes that can be imported from here, and where vLLM has them."""

ON_INSTANCES: tuple[str, ...] = (
    f"{_ENGINE}.model_executor",
    f"{_ENGINE}.vllm_config",
    "vllm.v1.executor.uniproc_executor.UniProcExecutor.driver_worker",
    "vllm.v1.worker.worker_base.WorkerWrapperBase.worker",
    f"{_WORKER}.model_runner",
    f"{_RUNNER}.model",
    f"{_RUNNER}.sampler",
    f"{_RUNNER}.input_batch",
    f"{_RUNNER}.query_start_loc",
    f"{_BATCH}.token_ids_cpu",
    f"{_BATCH}.num_computed_tokens_cpu",
    "vllm.v1.utils.CpuGpuBuffer.np",
    f"{_GROUPS}.GroupCoordinator.world_size",
    f"{_LAYERS}.attention.Attention.attn_type",
    f"{_EMBEDDING}.quant_method",
)
"""What of `REQUIRED` only objects have: each is looked for on the object, when it is there."""
REQUIRED: tuple[str, ...] = (
    *_CLASSES.values(),
    f"{_ENGINE}.from_engine_args",
    f"{_ENGINE}.add_request",
    f"{_ENGINE}.has_unfinished_requests",
    f"{_ENGINE}.step",
    f"{_ENGINE}.reset_prefix_cache",
    f"{_ENGINE}.collective_rpc",
    f"{_CONFIGS}.get_config",
    f"{_CONFIGS}.get_hf_text_config",
    f"{_MODEL}.get_model_arch_config",
    f"{_MODEL}.get_sliding_window",
    f"{_MODEL}.is_moe",
    "vllm.config.set_current_vllm_config",
    "vllm.config.utils.replace",
    f"{_WORKER}.init_weight_transfer_engine",
    f"{_WORKER}.start_weight_update",
    f"{_WORKER}.update_weights",
    f"{_WORKER}.finish_weight_update",
    _RUNNER,
    f"{_BATCH}.num_reqs",
    f"{_BATCH}.req_ids",
    f"{_GROUPS}._groups",
    f"{_GROUPS}._EP",
    f"{_GROUPS}.get_tp_group",
    f"{_GROUPS}.get_world_group",
    f"{_GROUPS}.GroupCoordinator.destroy",
    f"{_TRANSFER}.factory.WeightTransferEngineFactory.register_engine",
    f"{_LOADER}.DefaultModelLoader.Source",
    f"{_LOADER}.DefaultModelLoader.Source.allow_patterns_overrides",
    f"{_LOADER}.reload.initialize_layerwise_reload",
    f"{_LOADER}.reload.finalize_layerwise_reload",
    f"{_LOADER}.reload.layerwise.get_layerwise_info",
    f"{_INFO}.can_load",
    f"{_INFO}.load_numel",
    f"{_INFO}.load_numel_total",
    _COUNTED,
    f"{_LOADER}.utils.initialize_model",
    "vllm.model_executor.models.utils.maybe_prefix",
    f"{_LAYERS}.attention.Attention",
    f"{_LAYERS}.attention_layer_base.AttentionLayerBase",
    f"{_LAYERS}.vocab_parallel_embedding.UnquantizedEmbeddingMethod.process_weights_after_loading",
    "vllm.v1.attention.backend.AttentionType",
    "vllm.platforms.interface.Platform.import_kernels",
    "vllm.ir.ops.rms_norm.register_impl",
    "vllm.ir.ops.fused_add_rms_norm.register_impl",
    *ON_INSTANCES,
)
OPTIONAL: tuple[str, ...] = (
    # Kernels that a build of vLLM may lack; its plain operations then do the same.
    "torch.ops._C.rms_norm",
    "torch.ops._C.fused_add_rms_norm",
    # What layers have where their weights are packed for a CPU's kernel, and some of them anyway.
    f"{_EMBEDDING}.cpu_linear",
    f"{_EMBEDDING}.embedding_dim",
    f"{_LAYERS}.linear.RowParallelLinear.input_size_per_partition",
    # What a layer of experts computes with.
    f"{_LAYERS}.fused_moe.fused_moe_method_base.FusedMoEMethodBase.moe_kernel",
)
"""Used where it is there, and done without where it is not."""

__getattr__ = compat.lazy_names(LIBRARY, __name__, _CLASSES)

_MEMBERS = {dotted.rpartition(".")[2]: dotted for dotted in ON_INSTANCES}


def check() -> None:
    """Raises IncompatibleLibrary with all of `REQUIRED` that this vLLM lacks."""
    compat.check(LIBRARY, REQUIRED, ON_INSTANCES)


def _resolve(dotted: str) -> Any:
    return compat.resolve(LIBRARY, dotted)


def _member(owner: Any, name: str) -> Any:
    return compat.member(LIBRARY, owner, _MEMBERS[name])


class ModelRunner:
    """What computes the steps of an engine that runs in this process, with what of it is used here."""

    def __init__(self, engine: LLMEngine):
        """Raises IncompatibleLibrary if the engine's model runner is of another make."""
        runner: Any = engine
        for name in ("model_executor", "driver_worker", "worker", "model_runner"):
            runner = _member(runner, name)
        for name in ("model", "sampler"):
            _member(runner, name)
        for name in ("token_ids_cpu", "num_computed_tokens_cpu"):
            _member(_member(runner, "input_batch"), name)
        _member(_member(runner, "query_start_loc"), "np")
        self._runner = runner

    @property
    def model(self) -> Any:
        """The network, as it was registered with vLLM."""
        return self._runner.model

    def draw_with(self, sampler: Callable[..., SamplerOutput]) -> None:
        """Draw tokens with this from now on, in place of vLLM's own sampler."""
        self._runner.sampler = sampler

    def request_ids(self) -> Sequence[str]:
        """Names of the sequences of the step under way, row by row."""
        return self._runner.input_batch.req_ids

    def step_tokens(self) -> tuple[Sequence[Tokens], Ints]:
        """What is about to be computed: of each request all tokens up to the last one of this step, and how
        many of them are computed already."""
        batch = self._runner.input_batch
        computed = batch.num_computed_tokens_cpu[: batch.num_reqs]
        ends = computed + np.diff(self._runner.query_start_loc.np[: batch.num_reqs + 1])
        return [tokens[:end] for tokens, end in zip(batch.token_ids_cpu, ends, strict=False)], computed


def settings_of(engine: LLMEngine) -> VllmConfig:
    """All that an engine was made with."""
    return _member(engine, "vllm_config")


def close_single_member_groups() -> None:
    """Close the groups of processes that vLLM makes for every kind of parallelism, where each has one member.

    A group of gloo keeps a thread that looks up a hundred times a second; a dozen of them take the cores from
    whoever computes on this machine. vLLM asks none of a single member, and closing twice is allowed.
    """
    from vllm.platforms import current_platform

    world = _resolve(f"{_GROUPS}.get_world_group")
    if current_platform.is_cpu() and _member(world(), "world_size") == 1:
        for group in [reference() for reference in _resolve(f"{_GROUPS}._groups").values()]:
            if group is not None:
                group.destroy()


def register_weight_transfer(name: str, module: str, class_name: str) -> None:
    """Let engines receive weights through a WeightTransferEngine of another package."""
    factory = _resolve(f"{_TRANSFER}.factory.WeightTransferEngineFactory")
    factory.register_engine(name, module, class_name)


def make_network(vllm_config: VllmConfig, prefix: str, name: str, folder: str) -> Any:
    """vLLM's own model of a folder, as the part `name` of another model."""
    own = _config_of(vllm_config, folder)
    if own.model_config.is_moe and _resolve(f"{_GROUPS}._EP") is None:
        # vLLM makes this group where the outer model has experts. Of one process, it is that of tensors.
        _resolve(_GROUPS)._EP = _resolve(f"{_GROUPS}.get_tp_group")()
    return _resolve(f"{_LOADER}.utils.initialize_model")(
        vllm_config=own, prefix=_resolve("vllm.model_executor.models.utils.maybe_prefix")(prefix, name)
    )


def _config_of(vllm_config: VllmConfig, folder: str) -> VllmConfig:
    """The engine's settings with all that they say of a model read from this folder.

    vLLM's own way to run a model inside another keeps what it read of the outer one: its text config, and a
    window for all layers.
    """
    model_config: Any = copy.deepcopy(vllm_config.model_config)
    model_config.model = model_config.tokenizer = folder
    model_config.hf_config = _resolve(f"{_CONFIGS}.get_config")(folder, trust_remote_code=False)
    text = model_config.hf_text_config = _resolve(f"{_CONFIGS}.get_hf_text_config")(model_config.hf_config)
    model_config.model_arch_config = model_config.get_model_arch_config()
    model_config.attention_chunk_size = getattr(text, "attention_chunk_size", None)
    if not model_config.get_sliding_window():  # 0 means none to transformers alone
        text.sliding_window = None
    model_config.is_submodel_config = True  # the engine's settings are checked already
    cache_config: Any = copy.copy(vllm_config.cache_config)
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"]
    alike = set(kinds) == {"sliding_attention"}  # else each layer is told its own
    cache_config.sliding_window = model_config.get_sliding_window() if alike else None
    replace = _resolve("vllm.config.utils.replace")
    return replace(vllm_config, model_config=model_config, cache_config=cache_config)


@contextmanager
def as_in_engine(vllm_config: VllmConfig) -> Iterator[None]:
    """Let models of transformers be made in here.

    Where vLLM runs a family by transformers' own class, it changes that class for the whole process: it then
    wants the engine's settings whenever it is made.
    """
    with _resolve("vllm.config.set_current_vllm_config")(vllm_config):
        yield


def load_only(model: Any, files: Sequence[tuple[Path, str]]) -> None:
    """Have vLLM's loader read these files for `model`, in this order, and none that lies beside them.

    Each comes with what to put before its tensors' names; the first with nothing, as vLLM reads it. Left
    alone the loader takes all that ends in .safetensors. Of several patterns it takes only the first that
    finds a file, so each file is a source of its own.
    """
    source = _resolve(f"{_LOADER}.DefaultModelLoader.Source")
    # An absolute pattern, since the folder's name may hold characters that mean something in a pattern.
    sources = [
        source(
            str(file.parent),
            revision=None,
            prefix=prefix,
            allow_patterns_overrides=[glob.escape(str(file.absolute()))],
        )
        for file, prefix in files
    ]
    model.allow_patterns_overrides = sources[0].allow_patterns_overrides
    model.secondary_weights = sources[1:]


def plain_attention(network: nn.Module) -> list[nn.Module] | None:
    """Its layers of attention; None if it has layers that mix tokens in another way, or not causally."""
    base = _resolve(f"{_LAYERS}.attention_layer_base.AttentionLayerBase")
    plain = _resolve(f"{_LAYERS}.attention.Attention")
    causal = _resolve("vllm.v1.attention.backend.AttentionType.DECODER")
    layers = [module for module in network.modules() if isinstance(module, base)]
    if all(type(layer) is plain and _member(layer, "attn_type") == causal for layer in layers):
        return layers
    return None


def layers_with_kernels(network: nn.Module) -> Iterator[tuple[int, Callable[[Tensor], Tensor]]]:
    """Input width and product of each layer whose weights may lie packed in a kernel, out of sight."""
    for module in network.modules():
        width: Any = getattr(module, "input_size_per_partition", getattr(module, "embedding_dim", None))
        apply: Any = getattr(getattr(module, "quant_method", None), "apply", None)
        if width is not None and apply is not None:
            yield width, lambda x, apply=apply, module=module: apply(module, x)


def begin_layerwise_reload(network: nn.Module, in_place: Sequence[nn.Module]) -> None:
    """Open a network for new weights of all layers; those `in_place` are written where they lie.

    vLLM would fill a second tensor and copy that into the first, since a layer's weights may change their
    form when they are processed. A layer that already counts what it has loaded is left alone when a reload
    begins, and processed as it stands when it ends.
    """
    info = _resolve(f"{_LOADER}.reload.layerwise.get_layerwise_info")
    for layer in in_place:
        info(layer).load_numel_total = 0
    _resolve(f"{_LOADER}.reload.initialize_layerwise_reload")(network)


def end_layerwise_reload(
    network: nn.Module, model_config: Any, skipped: Sequence[nn.Module] = ()
) -> list[str]:
    """Bring the new weights into the form that kernels read.

    Gives the names of layers, but those `skipped`, that did not get as many numbers as they hold: they keep
    the old ones, or have none.
    """
    info = _resolve(f"{_LOADER}.reload.layerwise.get_layerwise_info")
    short = [
        name
        for name, layer in network.named_modules()
        if layer not in skipped
        and info(layer).can_load()
        and info(layer).load_numel_total > 0
        and info(layer).load_numel < sum(map(_resolve(_COUNTED), layer.parameters(recurse=False)))
    ]
    _resolve(f"{_LOADER}.reload.finalize_layerwise_reload")(network, model_config)
    return short


def use_weights_of(head: ParallelLMHead, embedding: VocabParallelEmbedding) -> None:
    """Give a tied head its embedding's weights, and what is packed of them.

    On CPUs vLLM packs the embedding as it packs the head, and would hold and make the same twice.
    """
    head.weight = embedding.weight
    packed = getattr(embedding, "cpu_linear", None)
    if packed is None or getattr(head, "bias", None) is not None:
        _member(head, "quant_method").process_weights_after_loading(head)
    else:
        head.cpu_linear = packed


def release_packed(network: nn.Module) -> None:
    """Let go of what is packed for CPUs, before it is packed anew layer by layer.

    The new weights then take the place of the old: no second model in memory, and hardly a new page.
    """
    from vllm.platforms import current_platform

    for module in network.modules():
        if hasattr(module, "cpu_linear"):
            del module.cpu_linear
        method: Any = getattr(module, "quant_method", None)
        if current_platform.is_cpu() and getattr(method, "moe_kernel", None) is not None:
            # Experts are packed where their kernel is made, and only there.
            method.moe_kernel = None


def cpu_kernels(names: Sequence[str]) -> list[str]:
    """Those of these operations that this build of vLLM has compiled kernels for."""
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    return [name for name in names if compat.available(LIBRARY, f"torch.ops._C.{name}")]


@functools.cache
def cpu_kernel(name: str) -> Callable[..., None]:
    """A compiled kernel of `cpu_kernels`."""
    return _resolve(f"torch.ops._C.{name}")


def register_operation(
    name: str, provider: str, supports_args: Callable[..., bool], *, inplace: bool = False
) -> Callable[[Callable[..., Any]], Any]:
    """Decorator: an implementation of one of vLLM's operations, for settings to choose as `provider`."""
    register = _resolve(f"vllm.ir.ops.{name}.register_impl")
    return register(provider, supports_args=supports_args, inplace=inplace)

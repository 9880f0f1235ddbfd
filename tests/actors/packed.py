"""What vLLM has packed of its weights for CPUs, looked at where it is at home; run in its process."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

from minillm_ray.tests.actors import engines

_old: list[weakref.ref[Any]] = []
_alive: list[int] = []
_undo: list[Any] = []


def tied_layers_that_hold_their_own() -> int:
    """Output layers of both networks whose packed weights are not those of the embedding they are tied to."""
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    model, found = engines._engine.model, 0
    for network in (model.student, model.teacher):
        if network is not None and network.config.tie_word_embeddings:
            layers = [m for m in network.modules() if isinstance(m, VocabParallelEmbedding)]
            found += len({id(layer.cpu_linear) for layer in layers}) - 1
    return found


def an_unknown_tie() -> str:
    """What is said of a student that ties its output layer, where no embedding has that layer's weights."""
    from minillm_ray.common.errors import ModelError
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    student = engines._engine.model.student
    head: Any = next(m for m in student.modules() if isinstance(m, ParallelLMHead))
    shared = head.weight
    head.weight = type(shared)(shared.detach().clone(), requires_grad=False)
    try:
        engines._engine._engine.collective_rpc("init_weight_transfer_engine", args=({},))
    except ModelError as error:
        return str(error)
    finally:
        head.weight = shared
    return ""


def copies_to_vocabulary_layers(folder: Path) -> list[int]:
    """Where numbers were copied, of as many rows as the vocabulary has, while these weights were loaded.

    0 is the embedding, 1 a head apart, -1 anywhere else; a loader counts on tensors without memory first.
    """
    from minillm_ray.actors.vllm_weights import manifest_of
    from minillm_ray.actors.weight_prefetcher import Received
    from minillm_ray.common.types import WeightVersion
    from torch.utils._python_dispatch import TorchDispatchMode
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    modules = engines._engine.model.student.modules()
    layers: list[Any] = [layer for layer in modules if isinstance(layer, VocabParallelEmbedding)]
    position_ids = list(dict.fromkeys(layer.weight.data_ptr() for layer in layers))
    rows = (layers[0].num_embeddings, layers[0].num_embeddings_padded)
    found = []

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "copy_" in str(func) and not args[0].is_meta and args[0].shape[:1].numel() in rows:
                index = args[0].data_ptr()
                found.append(position_ids.index(index) if index in position_ids else -1)
            return func(*args, **kwargs or {})

    manifest = manifest_of(str(folder), WeightVersion(1), "float32")
    received = [Received.of(bucket.ref) for bucket in manifest.buckets]
    with Copies():
        engines._engine.load(manifest, received)
    return found


def watch() -> None:
    """Count, at each packing from now on, how many of the student's old packed weights are alive."""
    from vllm.model_executor.layers import utils

    packed = {id(m.cpu_linear): m.cpu_linear for m in engines._engine.model.student.modules() if _packs(m)}
    _old[:] = [weakref.ref(one) for one in packed.values()]
    _alive.clear()
    create = utils.ops.create_onednn_mm

    def counted(*args: Any) -> Any:
        _alive.append(sum(one() is not None for one in _old))
        return create(*args)

    utils.ops.create_onednn_mm = counted
    _undo.append(lambda: setattr(utils.ops, "create_onednn_mm", create))


def watched() -> tuple[int, list[int]]:
    """How many packed weights the student had when the watch began; how many were alive at each packing."""
    _undo.pop()()
    return len(_old), list(_alive)


def _packs(module: Any) -> bool:
    return hasattr(module, "cpu_linear")

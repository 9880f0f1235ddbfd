"""Real vLLM engines for tests, one after another in a process of their own.

vLLM rewires torch, OpenMP and the environment for a whole process, which other tests must not feel;
there an engine of a tiny model stands in two seconds once vLLM is imported.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from minillm_ray.actors.weight_prefetcher import Received
from minillm_ray.common.config.run import RolloutConfig
from minillm_ray.common.types import Prompt, SamplingSpec, WeightVersion
from minillm_ray.common.weights import Arrays, TensorForm, WeightBucket, WeightManifest, checksum
from transformers import AutoModelForCausalLM

VOCABULARY = 128
MAX_TOKENS = 128


@dataclass(frozen=True)
class Pair:
    """A student and a teacher (or none) on disk, for one engine."""

    student: Path
    teacher: Path | None
    vocabulary: int = VOCABULARY
    dtype: Literal["float32", "bfloat16"] = "float32"
    kv_cache_gib: float = 0.05


class EngineProcess:
    """The engine that was asked for last, in another process."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_prepare)
        self._pair: Pair | None = None

    def use(self, pair: Pair) -> EngineProcess:
        """Stand up an engine for these models, with weights as on disk, unless it stands."""
        if pair != self._pair:
            self._pair = None
            self._pool.submit(_open, pair).result()
            self._pair = pair
        return self

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """What a method of the engine returns; what it raises is raised here."""
        return self._pool.submit(_call, method, args, kwargs).result()

    def load(self, manifest: WeightManifest, buckets: dict[int, Arrays]) -> None:
        """Load a manifest whose references are keys of `buckets`; the next `use` makes a new engine."""
        self._pair = None
        self._pool.submit(_load, manifest, buckets).result()

    def swap(self, student: Path) -> None:
        """Answer as another student; the next `use` makes a new engine."""
        self._pair = None
        self._pool.submit(_call, "swap_model", (str(student),), {}).result()

    def forwards(self, prompts: Sequence[Prompt], spec: SamplingSpec) -> tuple[list[int], list[int]]:
        """Tokens of each forward of the student, and of the teacher, while these prompts were answered."""
        return self._pool.submit(_forwards, prompts, spec).result()

    def run(self, function: Callable[[], Any]) -> Any:
        """What a function of a test's module finds where vLLM is at home."""
        return self._pool.submit(function).result()

    def alive(self) -> bool:
        """Whether the process is there; a model may have ended it."""
        try:
            self._pool.submit(int).result()
        except BrokenExecutor:
            return False
        return True

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown(cancel_futures=True)


_engine: Any = None


def _prepare() -> None:
    from minillm_ray.actors.vllm_engine import prepare_environment

    prepare_environment(threads=1)
    # vLLM collects garbage nine times between two engines, a second each on a busy machine; these are tiny.
    gc.collect = lambda generation=2: 0


def _open(pair: Pair) -> None:
    global _engine
    from minillm_ray.actors.vllm_engine import VllmEngine
    from vllm.distributed import cleanup_dist_env_and_memory

    if _engine is not None:
        _engine._engine.engine_core.shutdown()
        _engine = None
    cleanup_dist_env_and_memory()  # also of one that did not start
    _engine = VllmEngine(
        str(pair.student),
        str(pair.teacher) if pair.teacher else None,
        RolloutConfig(dtype=pair.dtype, kv_cache_gib=pair.kv_cache_gib, max_num_seqs=64),
        vocabulary=pair.vocabulary,
        max_tokens=MAX_TOKENS,
    )


def _call(method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return getattr(_engine, method)(*args, **kwargs)


def _load(manifest: WeightManifest, buckets: dict[int, Arrays]) -> None:
    for arrays in buckets.values():
        for array in arrays:
            array.setflags(write=False)  # as the object store gives them
    _engine.load(manifest, [Received.of(buckets[bucket.ref]) for bucket in manifest.buckets])


def _forwards(prompts: Sequence[Prompt], spec: SamplingSpec) -> tuple[list[int], list[int]]:
    student: list[int] = []
    teacher: list[int] = []
    hooks = [
        network.register_forward_pre_hook(lambda _, args, into=into: into.append(len(args[0])))
        for network, into in ((_engine.model.student, student), (_engine.model.teacher, teacher))
    ]
    _engine.generate(prompts, spec)
    for hook in hooks:
        hook.remove()
    return student, teacher


def threads_of_gloo() -> int:
    """How many threads of the process it runs in are gloo's."""
    names = [task / "comm" for task in Path("/proc/self/task").iterdir()]
    return sum(name.read_text(encoding="utf-8").startswith("gloo") for name in names)


def rows_shared_with_another_kind_of_layer() -> tuple[bool, bool]:
    """Whether the engine's model shares rows; and whether it would, had it a layer that is not attention."""
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

    class Recurrent(torch.nn.Module, AttentionLayerBase):
        def get_attn_backend(self) -> Any: ...

        def get_kv_cache_spec(self, vllm_config: Any) -> Any: ...

    model = _engine.model
    before = model._prefill
    model.other, model._prefill = Recurrent(), None
    try:
        model.share_prefill(lambda: ([], np.zeros(0, np.int64)))
        return before is not None, model._prefill is not None
    finally:
        del model.other
        model._prefill = before


def some_prompts(count: int = 5) -> list[Prompt]:
    """Prompts of unequal lengths, some longer than a cache block, none with special tokens."""
    lengths = (4, 11, 33, 37, 70)
    return [
        Prompt(id=f"prompt/{n}", token_ids=np.arange(5 + n, 5 + n + lengths[n % 5], dtype=np.int32))
        for n in range(count)
    ]


def reference(folder: Path | None) -> Any:
    """The same model in transformers, in float32."""
    assert folder is not None
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def reference_logits(model: Any, prompt: Any, answer: Any, vocabulary: int = VOCABULARY) -> torch.Tensor:
    """Logits [T, V] that transformers gives for an answer's tokens, cut to the common vocabulary."""
    ids = torch.tensor(np.concatenate([prompt, answer]))[None].long()
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return logits[0, len(prompt) - 1 : -1, :vocabulary].float()


def nudge(model: Any, seed: int, scale: float = 0.05) -> None:
    """Change every weight, as an optimiser step would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def publish(
    model: Any, version: int, *, buckets: int = 2, dtype: str = "float32"
) -> tuple[WeightManifest, dict[int, list[np.ndarray]]]:
    """All weights of a model as a manifest and the buckets that its references name."""
    named = list(model.named_parameters())
    per_bucket = -(-len(named) // buckets)
    parts, store = [], {}
    for number in range(buckets):
        part = named[number * per_bucket : (number + 1) * per_bucket]
        forms = tuple(TensorForm(name=name, shape=tuple(p.shape), dtype=dtype) for name, p in part)
        store[number] = [_bits(parameter, dtype) for _, parameter in part]
        parts.append(WeightBucket(ref=number, tensors=forms, checksum=checksum(store[number])))
    return WeightManifest(version=WeightVersion(version), buckets=tuple(parts)), store


def _bits(parameter: torch.Tensor, dtype: str) -> np.ndarray:
    tensor = parameter.detach().to(getattr(torch, dtype)).clone()
    return (tensor.view(torch.uint16) if dtype == "bfloat16" else tensor).numpy()

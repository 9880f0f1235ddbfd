"""Parameters to buckets to one manifest: how new weights leave the learner.

Under ZeRO-3 the ranks gather bucket by bucket, so no rank ever holds more than one bucket beside its shard.
Only rank 0 copies, each parameter once, from where it is into the object store; tied ones go once, by their
first name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..common.arrays import bits_of
from ..common.types import WeightVersion
from ..common.weights import Arrays, TensorForm, WeightBucket, WeightManifest, checksum
from .engine import TrainEngine

Put = Callable[[Arrays], Any]
"""Copies a bucket's arrays to where others can get them; gives their reference."""


def plan_buckets(
    shapes: Mapping[str, tuple[int, ...]], bucket_bytes: int, dtype: str
) -> list[tuple[TensorForm, ...]]:
    """All tensors in order, cut so that each bucket holds at most `bucket_bytes`, or one larger one alone."""
    buckets: list[list[TensorForm]] = []
    room = 0
    for name, shape in shapes.items():
        form = TensorForm(name=name, shape=tuple(shape), dtype=dtype)
        if not buckets or form.num_bytes > room:
            buckets.append([])
            room = bucket_bytes
        buckets[-1].append(form)
        room -= form.num_bytes
    return [tuple(bucket) for bucket in buckets]


def joined(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors in one dimension; those that are adjacent in memory become one.

    The object store copies a long array in half the time that it takes for the same in short ones.
    """
    found: list[Tensor] = []
    for tensor in tensors:
        flat = tensor.detach().reshape(-1)
        if found and _follows(flat, found[-1]):
            found[-1] = found[-1].as_strided((len(found[-1]) + len(flat),), (1,))
        else:
            found.append(flat)
    return found


def _follows(flat: Tensor, before: Tensor) -> bool:
    return (
        flat.dtype == before.dtype
        and flat.untyped_storage().data_ptr() == before.untyped_storage().data_ptr()
        and flat.storage_offset() == before.storage_offset() + len(before)
    )


def publish(
    engine: TrainEngine,
    version: WeightVersion,
    put: Put | None,
    *,
    bucket_bytes: int,
    dtype: str,
) -> WeightManifest | None:
    """All weights as one manifest, on the rank that has a `put`; the others take part and get None."""
    buckets: list[WeightBucket] = []
    for forms in plan_buckets(engine.shapes(), bucket_bytes, dtype):
        with engine.gathered([form.name for form in forms]) as whole:
            if put is None:
                continue
            merged = joined([whole[form.name] for form in forms])
            arrays = [bits_of(tensor.to(getattr(torch, dtype))) for tensor in merged]
            bucket = WeightBucket(ref=put(arrays), tensors=forms, checksum=checksum(arrays))
            assert bucket.views(arrays) is not None, forms
            buckets.append(bucket)
    return WeightManifest(version=version, buckets=tuple(buckets)) if put else None

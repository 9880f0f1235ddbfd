"""Parameters to buckets to one manifest: how new weights leave the learner.

Under ZeRO-3 the ranks gather bucket by bucket, so no rank ever holds more than one bucket beside its share.
Only rank 0 copies, each parameter once, from where it lies into the store; tied ones go once, by their
first name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from ..common.arrays import bits_of
from ..common.messages import WeightVersion
from ..common.weights import Arrays, TensorForm, WeightBucket, WeightManifest, checksum

Put = Callable[[Arrays], Any]
"""Copies a bucket's arrays to where others can get them; gives their reference."""


class Parameters(Protocol):
    """All that publishing asks of whoever holds the student."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and whole shapes, tied parameters once."""
        ...

    def gathered(self, names: Sequence[str]) -> AbstractContextManager[Mapping[str, Tensor]]:
        """These parameters whole, for the length of the block; all ranks enter."""
        ...


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


def publish(
    parameters: Parameters,
    version: WeightVersion,
    put: Put | None,
    *,
    bucket_bytes: int,
    dtype: str,
) -> WeightManifest | None:
    """All weights as one manifest, on the rank that has a `put`; the others take part and get None."""
    buckets: list[WeightBucket] = []
    for forms in plan_buckets(parameters.shapes(), bucket_bytes, dtype):
        with parameters.gathered([form.name for form in forms]) as whole:
            if put is None:
                continue
            arrays = [bits_of(whole[form.name].detach().to(getattr(torch, dtype))) for form in forms]
            bucket = WeightBucket(ref=put(arrays), tensors=forms, checksum=checksum(arrays))
            assert bucket.fits(arrays), forms
            buckets.append(bucket)
    return WeightManifest(version=version, buckets=tuple(buckets)) if put else None

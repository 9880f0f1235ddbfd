"""Parameters to buckets to one manifest: how new weights leave the learner.

Under ZeRO-3 the ranks gather bucket by bucket, so no rank ever holds more than one bucket beside its share.
Only rank 0 copies, each parameter once, straight into its place; tied ones go once, by their first name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..common.messages import WeightVersion
from ..common.weights import TensorSlot, WeightBucket, WeightManifest, checksum, lay_out, view

Put = Callable[[npt.NDArray[np.uint8]], Any]
"""Keeps a copy of a bucket where others can get it; gives its reference."""


class Parameters(Protocol):
    """All that publishing asks of whoever holds the student."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and whole shapes, tied parameters once."""
        ...

    def gathered(self, names: Sequence[str]) -> AbstractContextManager[Mapping[str, Tensor]]:
        """These parameters whole, for the length of the block; all ranks enter."""
        ...


def plan_buckets(shapes: Mapping[str, tuple[int, ...]], bucket_bytes: int, dtype: str) -> list[list[str]]:
    """Names in order, cut so that each bucket holds at most `bucket_bytes`, or one larger parameter alone."""
    buckets: list[list[str]] = []
    for name in shapes:
        grown = [*buckets[-1], name] if buckets else [name]
        _, num_bytes = lay_out([(n, shapes[n], dtype) for n in grown])
        if buckets and num_bytes <= bucket_bytes:
            buckets[-1] = grown
        else:
            buckets.append([name])
    return buckets


def publish(
    parameters: Parameters,
    version: WeightVersion,
    put: Put | None,
    *,
    bucket_bytes: int,
    dtype: str,
) -> WeightManifest | None:
    """All weights as one manifest, on the rank that has a `put`; the others take part and get None."""
    shapes = parameters.shapes()
    plan = plan_buckets(shapes, bucket_bytes, dtype)
    layouts = [lay_out([(name, shapes[name], dtype) for name in names]) for names in plan]
    buffer = np.empty(max(size for _, size in layouts) if put else 0, np.uint8)  # one for all: put copies
    buckets: list[WeightBucket] = []
    for names, (slots, num_bytes) in zip(plan, layouts, strict=True):
        with parameters.gathered(names) as whole:
            if put is None:
                continue
            for slot in slots:
                _fill(buffer, slot, whole[slot.name])
        piece = buffer[:num_bytes]
        buckets.append(
            WeightBucket(ref=put(piece), slots=slots, num_bytes=num_bytes, checksum=checksum(piece))
        )
    return WeightManifest(version=version, buckets=tuple(buckets)) if put else None


@torch.no_grad()
def _fill(buffer: npt.NDArray[np.uint8], slot: TensorSlot, parameter: Tensor) -> None:
    """Convert and copy in one go."""
    place = torch.from_numpy(view(buffer, slot))
    target = place.view(torch.bfloat16) if slot.dtype == "bfloat16" else place
    assert target.shape == parameter.shape, slot
    target.copy_(parameter)

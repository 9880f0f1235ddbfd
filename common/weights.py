"""One published set of student weights: a manifest of buckets, and what a bucket holds.

A bucket is a list of arrays, one object in Ray's object store; its reference travels in the manifest. Tensors
that lie back to back where they come from are one array, which goes in by one copy, and out by none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from .types import WeightVersion

STORAGE = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
"""How a named dtype lies in memory: numpy has no bfloat16, its bits travel as uint16."""

Arrays = Sequence[npt.NDArray[Any]]
"""What a bucket holds: its tensors' numbers in order, each array one whole tensor or several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorForm:
    """What a stretch of a bucket's arrays stands for."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Numbers in the tensor."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes that the tensor fills."""
        return self.size * np.dtype(STORAGE[self.dtype]).itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightBucket:
    """Some arrays in the object store."""

    ref: Any
    """Ray object reference of the arrays; this module does not know Ray."""
    tensors: tuple[TensorForm, ...]
    checksum: int
    """Of the arrays, see `checksum`."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.num_bytes for tensor in self.tensors)

    def views(self, arrays: Arrays) -> list[npt.NDArray[Any]] | None:
        """Each tensor in its shape, over the arrays' own memory; None if these cannot be its arrays."""
        waiting, views = iter(arrays), []
        left = np.empty(0)
        for form in self.tensors:
            if form.size and not left.size:
                left = next(waiting, left).reshape(-1)
            if form.size > left.size or (form.size and left.dtype != STORAGE[form.dtype]):
                return None
            views.append(left[: form.size].reshape(form.shape))
            left = left[form.size :]
        return None if left.size or any(array.size for array in waiting) else views


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightManifest:
    """All weights of one version: one message per update, not one per tensor."""

    version: WeightVersion
    buckets: tuple[WeightBucket, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of all buckets."""
        return sum(bucket.num_bytes for bucket in self.buckets)


def checksum(arrays: Arrays) -> int:
    """xxh3 (64 bits) of the arrays' bytes: as fast as memory is read, where crc32 took as long as loading."""
    state = xxhash.xxh3_64()
    for array in arrays:
        state.update(array.data)
    return state.intdigest()

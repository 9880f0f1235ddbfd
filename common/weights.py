"""One published set of student weights: a manifest of buckets, and how tensors lie in a bucket.

A bucket is one flat byte array in Ray's object store; its reference travels in the manifest. Packing
and unpacking are pure numpy here, so that both wings share them and neither needs the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from .messages import WeightVersion

STORAGE = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
"""How a named dtype lies in memory: numpy has no bfloat16, its bits travel as uint16."""

ALIGNMENT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSlot:
    """Where one tensor lies in its bucket."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int

    @property
    def num_bytes(self) -> int:
        """Bytes that the tensor fills."""
        return math.prod(self.shape) * np.dtype(STORAGE[self.dtype]).itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightBucket:
    """A flat byte array in the object store, and what lies in it."""

    ref: Any
    """Ray object reference of a uint8 array; this module does not know Ray."""
    slots: tuple[TensorSlot, ...]
    num_bytes: int
    checksum: int
    """xxh3 of the bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightManifest:
    """All weights of one version: one message per update, not one per tensor."""

    version: WeightVersion
    buckets: tuple[WeightBucket, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of all buckets."""
        return sum(bucket.num_bytes for bucket in self.buckets)


def lay_out(tensors: Iterable[tuple[str, tuple[int, ...], str]]) -> tuple[tuple[TensorSlot, ...], int]:
    """Slots for (name, shape, dtype) in order, each aligned to 64 bytes, and the bytes needed."""
    slots: list[TensorSlot] = []
    end = 0
    for name, shape, dtype in tensors:
        slot = TensorSlot(name=name, shape=tuple(shape), dtype=dtype, offset=end)
        slots.append(slot)
        end = -(-(end + slot.num_bytes) // ALIGNMENT) * ALIGNMENT
    return tuple(slots), end


def view(buffer: npt.NDArray[np.uint8], slot: TensorSlot) -> npt.NDArray[Any]:
    """The tensor that lies in `slot`, without a copy (bfloat16 as uint16)."""
    flat = buffer[slot.offset : slot.offset + slot.num_bytes]
    return flat.view(STORAGE[slot.dtype]).reshape(slot.shape)


def views(
    buffer: npt.NDArray[np.uint8], slots: Iterable[TensorSlot]
) -> Iterator[tuple[TensorSlot, npt.NDArray[Any]]]:
    """Every tensor of a bucket, without a copy."""
    for slot in slots:
        yield slot, view(buffer, slot)


def checksum(buffer: npt.NDArray[np.uint8]) -> int:
    """xxh3 (64 bits) of a bucket's bytes: as fast as memory is read, where crc32 took as long as loading."""
    return xxhash.xxh3_64_intdigest(buffer.data)

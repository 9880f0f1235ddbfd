"""Weights on their way into a rollout actor: fetched and checksummed while others are still being put."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..common.types import WeightVersion
from ..common.weights import Arrays, WeightManifest, checksum

Fetch = Callable[[list[Any]], list[Arrays]]
"""From buckets' references to what they hold, all at once: `ray.get`, or a table in a test."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Received:
    """What was received of a bucket: its arrays, and their checksum."""

    arrays: Arrays
    checksum: int

    @classmethod
    def of(cls, arrays: Arrays) -> Received:
        """These arrays, read once for their checksum."""
        return cls(arrays=arrays, checksum=checksum(arrays))


class WeightPrefetcher:
    """The buckets of one version received so far; a manifest says later which of them count."""

    def __init__(self, fetch: Fetch):
        self._fetch = fetch
        self._version = WeightVersion(0)
        self._received: dict[Any, Received] = {}

    def prefetch(self, version: WeightVersion, refs: Sequence[Any]) -> None:
        """Fetch these buckets; those of another version, which was never loaded, are dropped."""
        if version != self._version:
            self._version, self._received = version, {}
        self._received |= self._fetched(refs)

    def take(self, manifest: WeightManifest) -> list[Received]:
        """What was received of each bucket; those not prefetched are fetched now, and nothing is kept."""
        early, self._received = self._received, {}
        refs = [bucket.ref for bucket in manifest.buckets]
        received = early | self._fetched([ref for ref in refs if ref not in early])
        return [received[ref] for ref in refs]

    def _fetched(self, refs: Sequence[Any]) -> dict[Any, Received]:
        return dict(zip(refs, map(Received.of, self._fetch(list(refs))), strict=True))

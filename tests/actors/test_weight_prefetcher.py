import numpy as np
import pytest
from minillm_ray.actors.weight_prefetcher import WeightPrefetcher
from minillm_ray.common.types import WeightVersion
from minillm_ray.common.weights import WeightBucket, WeightManifest, checksum

STORE = {name: [np.full(3, number)] for number, name in enumerate("abcd")}


class Store:
    """Gives what is asked for, and remembers it; an unknown reference is an error, as in Ray."""

    def __init__(self):
        self.asked = []

    def __call__(self, refs):
        self.asked.append(list(refs))
        return [STORE[ref] for ref in refs]


@pytest.fixture
def store():
    return Store()


def manifest(version, refs):
    buckets = tuple(WeightBucket(ref=ref, tensors=(), checksum=checksum(STORE[ref])) for ref in refs)
    return WeightManifest(version=WeightVersion(version), buckets=buckets)


def sums(received):
    return [one.checksum for one in received]


def test_what_was_expected_is_fetched_once_and_the_rest_when_it_is_taken(store):
    arrivals = WeightPrefetcher(store)
    arrivals.prefetch(WeightVersion(1), ["b"])
    arrivals.prefetch(WeightVersion(1), ["a"])
    taken = arrivals.take(manifest(1, "abc"))
    assert store.asked == [["b"], ["a"], ["c"]]
    assert [one.arrays for one in taken] == [STORE[ref] for ref in "abc"]
    assert sums(taken) == [checksum(STORE[ref]) for ref in "abc"]


def test_all_that_was_not_expected_is_asked_for_at_once(store):
    WeightPrefetcher(store).take(manifest(1, "abc"))
    assert store.asked == [["a", "b", "c"]]


def test_the_manifest_decides_what_counts(store):
    arrivals = WeightPrefetcher(store)
    arrivals.prefetch(WeightVersion(1), ["d"])
    assert sums(arrivals.take(manifest(1, "ab"))) == [checksum(STORE[ref]) for ref in "ab"]


def test_nothing_is_kept_of_what_was_taken_nor_of_a_version_that_came_to_nothing(store):
    arrivals = WeightPrefetcher(store)
    arrivals.prefetch(WeightVersion(1), ["a"])
    arrivals.take(manifest(1, "a"))
    arrivals.take(manifest(2, "a"))
    arrivals.prefetch(WeightVersion(3), ["b"])
    arrivals.prefetch(WeightVersion(4), ["c"])
    arrivals.take(manifest(4, "bc"))
    assert [asked for asked in store.asked if asked] == [["a"], ["a"], ["b"], ["c"], ["b"]]

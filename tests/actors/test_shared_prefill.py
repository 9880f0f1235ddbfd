import numpy as np
import pytest
import torch
from minillm_ray.actors.shared_prefill import SharedPrefill, find_alike, rows_alike
from torch import nn


def tokens(*ids):
    return np.array(ids, np.int32)


@pytest.mark.parametrize("seed", range(20))
def test_two_rows_are_one_exactly_where_all_before_them_is_the_same(seed):
    # Few words and many sequences, so that beginnings meet; some of each is computed already. Of one that
    # has a single row left, that is its own.
    chance = np.random.default_rng(seed)
    sequences = [
        chance.integers(0, 2, chance.integers(1, 9)).astype(np.int32) for _ in range(chance.integers(1, 9))
    ]
    computed = np.array([chance.integers(0, len(sequence)) for sequence in sequences])
    beginnings = [
        (number if start == len(sequence) - 1 else None, *sequence[: end + 1])
        for number, (sequence, start) in enumerate(zip(sequences, computed, strict=True))
        for end in range(start, len(sequence))
    ]
    found = rows_alike(sequences, computed)
    if found is None:
        assert len(set(beginnings)) == len(beginnings)
        return
    first, owners = found
    assert len(first) == len(set(beginnings)) < len(beginnings)
    assert [beginnings[row] for row in first[owners]] == beginnings


def test_rows_that_no_request_asked_for_are_left_alone():
    # As when vLLM warms up: what the requests say is of another step.
    asked = [tokens(1, 2, 3), tokens(1, 2, 4)], np.array([0, 0])
    assert find_alike(torch.tensor([1, 2, 3, 1, 2, 4]), asked) is not None
    assert find_alike(torch.tensor([1, 2, 3, 1, 2, 5]), asked) is None
    assert find_alike(torch.tensor([1, 2, 3, 1, 2]), asked) is None
    assert find_alike(torch.zeros(6, dtype=torch.long), ([], np.zeros(0, np.int64))) is None


class Counting(nn.Module):
    """A layer that tells the rows it saw."""

    def forward(self, query, *, key=None, shape=None):
        self.saw = len(query), key if key is None else len(key), shape
        return query * 2


ASKED = [tokens(7, 8, 1), tokens(7, 8, 2)], np.array([0, 0])
IDS, PLACES = torch.tensor([7, 8, 1, 7, 8, 2]), torch.tensor([0, 1, 2, 0, 1, 2])


def sharing(layer, *more):
    """A prefill that has seen its layers reached, as a first request of an engine shows."""
    prefill = SharedPrefill({"student": [layer, *more]}, lambda: ASKED)
    with prefill.rows(IDS, PLACES, ["student"]) as (all_rows, _, alike):
        assert alike is None
        layer(all_rows.float())
    return prefill


@pytest.mark.parametrize("call", [lambda layer: layer, lambda layer: layer.forward], ids=["call", "forward"])
def test_the_layers_named_see_every_row_for_the_length_of_the_step_alone(call):
    layer = Counting()
    with sharing(layer).rows(IDS, PLACES, ["student"]) as (few, few_places, alike):
        assert few.tolist() == [7, 8, 1, 2]
        assert few_places.tolist() == [0, 1, 2, 2]
        twice = call(layer)(few.float(), key=few, shape=torch.Size((4, 9)))
        assert layer.saw == (6, 6, (6, 9))
        assert twice.tolist() == [14, 16, 2, 4]
        assert alike is not None
        assert few[alike.owners].tolist() == IDS.tolist()
    call(layer)(few)
    assert layer.saw == (4, None, None)


def test_rows_are_not_shared_before_every_layer_of_the_step_was_reached():
    student, teacher = Counting(), Counting()
    prefill = SharedPrefill({"student": [student], "teacher": [teacher]}, lambda: ASKED)
    shared = []
    for networks in (["student"], ["student"], ["student", "teacher"], ["student", "teacher"]):
        with prefill.rows(IDS, PLACES, networks) as (rows, _, alike):
            for layer in (student, teacher)[: len(networks)]:
                layer(rows.float())
            shared.append(alike is not None)
    assert shared == [False, True, False, True]
    assert prefill.on


def test_a_network_that_goes_past_its_layers_shares_no_rows():
    prefill = sharing(Counting(), Counting())
    assert not prefill.on
    with prefill.rows(IDS, PLACES, ["student"]) as (rows, _, alike):
        assert alike is None
        assert rows is IDS


def test_layers_see_their_own_rows_after_a_step_that_failed():
    layer = Counting()
    prefill = sharing(layer)
    with pytest.raises(ZeroDivisionError), prefill.rows(IDS, PLACES, ["student"]):
        raise ZeroDivisionError
    layer(torch.ones(2))
    assert layer.saw == (2, None, None)

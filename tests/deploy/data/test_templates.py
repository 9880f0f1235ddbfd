"""The stream of prompts: every pass brings each item once, and one number says where it stands."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from minillm_ray.common.errors import DataError
from minillm_ray.deploy.data.streams import PromptStream
from minillm_ray.deploy.data.templates import alpaca, plain


@given(st.integers(1, 9), st.integers(0, 30), st.integers(0, 5))
def test_a_stream_moved_to_a_saved_place_goes_on_as_if_never_stopped(size, before, seed):
    one = PromptStream(range(size), seed=seed)
    one.take(before)
    other = PromptStream(range(size), seed=seed)
    other.move_to(one.state())
    assert other.cursor == before
    assert one.take(2 * size) == other.take(2 * size)


def test_every_pass_brings_each_item_once_in_an_order_of_its_own():
    stream = PromptStream(range(20), seed=1)
    passes = [stream.take(20) for _ in range(3)]
    assert all(sorted(one) == list(range(20)) for one in passes)
    assert len({tuple(one) for one in passes}) == 3
    assert PromptStream(range(20), seed=2).take(20) != passes[0]


def test_a_take_may_reach_into_the_next_pass():
    whole, pieces = PromptStream(range(5), seed=3), PromptStream(range(5), seed=3)
    assert whole.take(12) == pieces.take(4) + pieces.take(4) + pieces.take(4)


def test_without_shuffling_items_come_in_their_own_order():
    assert PromptStream("abc", seed=0, shuffle=False).take(7) == list("abcabca")


def test_an_empty_stream_is_refused():
    with pytest.raises(DataError, match="at least one"):
        PromptStream([], seed=0)


@pytest.mark.parametrize(("size", "seed", "name"), [(6, 1, "size"), (5, 2, "seed")])
def test_another_streams_place_is_refused(size, seed, name):
    saved = PromptStream(range(5), seed=1).state()
    with pytest.raises(DataError, match=f"saved with {name}"):
        PromptStream(range(size), seed=seed).move_to(saved)


def test_the_alpaca_template_has_an_input_block_only_where_there_is_input():
    assert alpaca("Add.", "1 and 2") == (
        "Below is an instruction that describes a task, paired with an input that provides further context."
        " Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:\n"
    )
    assert "### Input" not in alpaca("Add.")
    assert alpaca("Add.").endswith("### Instruction:\nAdd.\n\n### Response:\n")


def test_plain_text_is_left_as_it_is():
    assert plain("Say hi") == "Say hi"
    assert plain("Sum up", "a text") == "Sum up\na text"

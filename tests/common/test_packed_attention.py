"""A model reads sequences that share a row as if each were alone, or is left as it was."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from minillm_ray.common import packed_attention
from minillm_ray.common.heads import final_hidden
from minillm_ray.common.packed_attention import UNBOUNDED, Layout, enable_packing, read
from minillm_ray.common.packing import Tokens, pack
from minillm_ray.tests.families import FAMILIES, tiny
from torch import Tensor
from transformers import PreTrainedModel

CPU = torch.device("cpu")
ALONE = {"gptj"}
"""Families whose attention cannot be reached."""
WORDS = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=9), min_size=2, max_size=6)


def arrays(words: Sequence[Sequence[int]]) -> list[Tokens]:
    return [np.array(word, np.int32) for word in words]


def some_words() -> list[Tokens]:
    """A template, two prompts behind it with several answers each, and one with nothing in common."""
    template, first, second = [3, 4, 5, 6], [7, 8, 9], [10, 11]
    answers = [[12] * 9, [12, 13], [14], list(range(20, 50))]
    return arrays([[*template, *p, *a] for p in (first, second) for a in answers] + [[60, 61, 62]])


def in_shared_rows(model: PreTrainedModel, words: list[Tokens]) -> list[Tensor]:
    packed = pack(words, max_packed_len=1000)
    layout = Layout.of(packed, CPU)
    assert layout is not None
    states = read(model, torch.from_numpy(packed.ids), layout)[0]
    return [states[torch.from_numpy(slots)] for slots in packed.slots]


def alone(model: PreTrainedModel, words: list[Tokens]) -> list[Tensor]:
    return [final_hidden(model, torch.from_numpy(word.astype(np.int64))[None])[0] for word in words]


def gradients(model: PreTrainedModel, states: list[Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    sum((n + 1) * (s * s).sum() for n, s in enumerate(states)).backward()  # pyright: ignore[reportAttributeAccessIssue]
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ALONE])
def test_states_and_gradients_of_shared_rows_are_those_of_rows_of_their_own(family: str) -> None:
    model, words = tiny(family), some_words()
    assert enable_packing(model) > max(map(len, words))
    shared, each_alone = in_shared_rows(model, words), alone(model, words)
    for one, other in zip(shared, each_alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    found, wanted = gradients(model, shared), gradients(model, each_alone)
    assert found.keys() == wanted.keys()
    largest = max(float(gradient.norm()) for gradient in wanted.values())
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-3, atol=1e-5 * largest)


@given(WORDS)
@settings(max_examples=25, deadline=None)
def test_no_token_is_moved_by_one_of_another_sequence(words: list[list[int]]) -> None:
    model = tiny("llama").double()
    assert enable_packing(model)
    if pack(arrays(words), max_packed_len=1000).shared is None:
        return
    with torch.no_grad():
        for one, other in zip(in_shared_rows(model, arrays(words)), alone(model, arrays(words)), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_model_that_shares_rows_still_reads_padded_ones(family: str) -> None:
    ids = torch.randint(3, 120, (2, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    model = tiny(family)
    with torch.no_grad():
        before = final_hidden(model, ids, mask)
        assert enable_packing(model)
        assert torch.equal(final_hidden(model, ids, mask), before)


def test_sharing_twice_is_sharing_once() -> None:
    model = tiny("llama")
    assert enable_packing(model) == enable_packing(model) == UNBOUNDED
    assert model.config._attn_implementation == "shared_sdpa"


def test_memory_saved_by_recomputing_changes_no_gradient() -> None:
    model, words = tiny("llama").train(), some_words()
    assert enable_packing(model)
    wanted = gradients(model, in_shared_rows(model, words))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for name, gradient in gradients(model, in_shared_rows(model, words)).items():
        torch.testing.assert_close(gradient, wanted[name])


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: tiny("bloom", n_layer=2, n_head=2), id="no positions"),
        pytest.param(lambda: tiny("gptj"), id="attention of its own"),
    ],
)
def test_a_family_that_cannot_is_left_as_it_was(model) -> None:
    made = model()
    before = made.config._attn_implementation
    assert enable_packing(made) == 0
    assert made.config._attn_implementation == before


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
    ],
    ids=["GPU", "CPU", "cuBLAS", "device"],
)
def test_a_machine_that_fails_is_not_taken_for_a_family_that_cannot(error, monkeypatch) -> None:
    def fails(*_: object, **__: object) -> Tensor:
        raise error

    model = tiny("llama")
    before = model.config._attn_implementation
    monkeypatch.setattr(packed_attention, "read", fails)
    with pytest.raises(type(error)) as found:
        enable_packing(model)
    assert found.value is error
    assert model.config._attn_implementation == before
    error = RuntimeError("The size of tensor a (7) must match the size of tensor b (21)")
    assert enable_packing(model) == 0


def test_a_model_with_a_window_shares_rows_of_what_fits_into_it() -> None:
    model = tiny("mistral", sliding_window=8)
    assert enable_packing(model) == 8
    words = [np.arange(3 + n, 11 + n, dtype=np.int32) for n in range(4)]
    words[1][:3] = words[0][:3]
    with torch.no_grad():
        for one, other in zip(in_shared_rows(model, words), alone(model, words), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert pack([np.arange(9, dtype=np.int32), *words], max_packed_len=enable_packing(model)).shared is None
    model.config.window_size = 8
    assert enable_packing(model) == 0


def test_a_model_in_16_bits_shares_rows_too() -> None:
    assert enable_packing(tiny("llama").bfloat16()) > 0

"""A product with weights is torch's own, in values and gradients, whichever library computes it."""

import copy
from typing import Any

import pytest
import torch
from minillm_ray.common import onednn_linear
from minillm_ray.common.heads import final_hidden
from minillm_ray.common.onednn_linear import linear
from minillm_ray.tests.families import FAMILIES, tiny
from torch import Tensor, nn

SHAPES = ((33,), (7, 33), (1, 5, 33), (2, 3, 33), (0, 33))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes that oneDNN was given."""
    seen: list[tuple[int, ...]] = []
    onednn = onednn_linear._ONEDNN
    assert onednn is not None

    def spy(x: Tensor, *rest: Any) -> Tensor:
        seen.append(tuple(x.shape))
        return onednn(x, *rest)

    monkeypatch.setattr(onednn_linear, "_ONEDNN", spy)
    return seen


def _gradients(product, *inputs: Tensor | None) -> list[Tensor]:
    leaves = [None if x is None else x.detach().clone().requires_grad_() for x in inputs]
    out = product(*leaves)
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, [x for x in leaves if x is not None], slope)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("biased", [True, False])
def test_values_and_gradients_are_those_of_float64(shape: tuple[int, ...], biased: bool):
    inputs = torch.randn(shape), torch.randn(11, 33), torch.randn(11) if biased else None
    exact = _gradients(nn.functional.linear, *(None if x is None else x.double() for x in inputs))
    for found, wanted in zip(_gradients(linear, *inputs), exact, strict=True):
        assert found.dtype == torch.float32
        assert torch.allclose(found.double(), wanted, atol=2e-5)


def test_tensors_may_lie_in_memory_as_they_like():
    wide = torch.randn(40, 66)
    for x in (wide[:, ::2], wide[:, 33:], torch.randn(33, 40).T, torch.randn(33).expand(40, 33)):
        for weight in (torch.randn(33, 22).T, torch.randn(22, 66)[:, 33:], torch.randn(44, 33)[::2]):
            assert torch.allclose(linear(x, weight), x @ weight.T, atol=1e-4)


def test_only_what_asks_for_a_gradient_gets_one():
    x, weight = torch.randn(5, 33), torch.randn(11, 33, requires_grad=True)
    linear(x, weight).sum().backward()
    assert x.grad is None
    assert weight.grad is not None
    x = x.requires_grad_()
    linear(x, weight.detach()).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_left_to_torch(dtype: torch.dtype, calls: list):
    x, weight = torch.randn(5, 33, dtype=dtype), torch.randn(11, 33, dtype=dtype)
    assert torch.equal(linear(x, weight), nn.functional.linear(x, weight))
    assert not calls


def test_torchs_switch_brings_its_own_product_back(calls: list, monkeypatch: pytest.MonkeyPatch):
    x, weight = torch.randn(5, 33), torch.randn(11, 33)
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "enabled", False)
        assert torch.equal(linear(x, weight), nn.functional.linear(x, weight))
    assert not calls
    linear(x, weight)
    assert calls == [(5, 33)]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_any_family_gives_the_same_states_and_gradients(
    family: str, checkpointing: bool, calls: list
):
    own = tiny(family).train()
    changed = copy.deepcopy(own)
    onednn_linear.use_in(changed)
    ids = torch.randint(0, 110, (2, 7))
    found = []
    for model in (own, changed):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.manual_seed(0)  # for the same dropout
        states = final_hidden(model, ids)
        states.square().mean().backward()
        found.append((states, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (states, gradients), (states_too, gradients_too) = found
    assert torch.allclose(states, states_too, atol=1e-4)
    assert gradients.keys() == gradients_too.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, gradients_too[name], atol=1e-5, rtol=1e-3), name
    layers = {type(m) for m in changed.base_model.modules() if isinstance(m, nn.Linear)}
    assert layers <= {onednn_linear.Linear}
    assert bool(calls) == bool(layers)


def test_a_linear_layer_of_ones_own_is_left_alone():
    class Own(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(3, 3), Own(3, 3))
    onednn_linear.use_in(model)
    assert [type(m) for m in model] == [onednn_linear.Linear, Own]

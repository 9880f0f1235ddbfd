"""A head read from a model gives that model's own logits, or is refused by the name of its class."""

import pytest
import torch
from minillm_ray.common import divergence
from minillm_ray.common.divergence import drawn_logprobs, measure
from minillm_ray.common.errors import ModelError
from minillm_ray.common.heads import Head, check_head, final_hidden, read_head
from minillm_ray.tests.families import FAMILIES, tiny


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_gives_its_models_own_logits(family: str, tied: bool):
    model = tiny(family, tie_word_embeddings=tied)
    head = read_head(model, 110)
    check_head(model, head)
    ids = torch.randint(0, 110, (2, 7))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits[..., :110]
        hidden = final_hidden(model, ids, mask)
        assert torch.allclose(head.logits(hidden), expected, atol=1e-5)
        tempered = head.scaled_logits(hidden.flatten(0, 1), 0.7, torch.float32)
        assert torch.allclose(tempered, expected.flatten(0, 1) / 0.7, atol=1e-5)


def test_bias_scale_and_soft_cap_are_read():
    assert read_head(tiny("gptj")).bias is not None
    assert read_head(tiny("cohere")).scale == 0.25
    assert read_head(tiny("granite")).scale == 0.25
    assert read_head(tiny("gemma2")).soft_cap == 1.5
    plain = read_head(tiny("llama"))
    assert (plain.bias, plain.scale, plain.soft_cap, plain.vocabulary) == (None, 1.0, None, 120)


@pytest.mark.parametrize(("family", "setting"), [("cohere", "scale"), ("gemma2", "soft_cap")])
def test_a_head_that_misses_something_is_refused_by_name(family: str, setting: str):
    model = tiny(family)
    bare = Head(weight=read_head(model).weight, vocabulary=120)
    assert getattr(read_head(model), setting) != getattr(bare, setting)
    with pytest.raises(ModelError, match=type(model).__name__):
        check_head(model, bare)


def test_a_factor_of_a_family_that_is_not_known_is_refused():
    model = tiny("hyperclovax", logits_scaling=0.5)
    with pytest.raises(ModelError, match="HyperCLOVAX"):
        check_head(model, read_head(model))


def test_a_head_of_other_hidden_states_is_refused():
    model = tiny("llama")
    with pytest.raises(ModelError, match="Llama"):
        check_head(model, Head(weight=torch.randn(120, 32), vocabulary=120))


def test_a_model_without_a_linear_output_layer_is_refused():
    model = tiny("llama")
    model.set_output_embeddings(torch.nn.Sequential(torch.nn.Linear(64, 120)))
    with pytest.raises(ModelError, match="Sequential"):
        read_head(model)


def test_more_words_than_the_head_has_are_refused():
    with pytest.raises(ModelError, match=r"120 words, 121"):
        read_head(tiny("llama"), 121)


def test_checking_leaves_the_model_as_it_was():
    model = tiny("gpt2").train()
    check_head(model, read_head(model))
    assert model.training


def test_sixteen_bit_models_pass_their_check():
    model = tiny("llama").bfloat16()
    check_head(model, read_head(model))


def test_a_frozen_head_is_a_copy_of_the_rows_in_use():
    head = Head(weight=torch.randn(9, 4, requires_grad=True), bias=torch.randn(9), vocabulary=6)
    frozen = head.frozen()
    assert frozen.bias is not None
    assert frozen.weight.shape == (6, 4)
    assert frozen.bias.shape == (6,)
    assert not frozen.weight.requires_grad
    hidden = torch.randn(3, 4)
    assert torch.equal(frozen.logits(hidden), head.logits(hidden))
    with torch.no_grad():
        head.weight.zero_()
    assert frozen.weight.any()
    assert head.frozen(torch.bfloat16).weight.dtype == torch.bfloat16


def test_hidden_states_reach_the_body_of_the_model():
    model = tiny("opt")
    hidden = final_hidden(model, torch.randint(0, 120, (1, 5)))
    assert hidden.shape == (1, 5, 32)
    hidden.sum().backward()
    assert any(p.grad is not None for p in model.parameters())


def test_figures_by_hand():
    """Two words: q = (3/4, 1/4), p = (1/2, 1/2), the second drawn."""
    q, p = torch.tensor([0.75, 0.25]), torch.tensor([0.5, 0.5])
    head = Head(weight=torch.eye(2), vocabulary=2)
    found = measure(q.log()[None], head, torch.tensor([1]), teacher_hidden=p.log()[None], teacher=head)
    expected = {
        "logprobs": q[1].log(),
        "teacher_logprobs": p[1].log(),
        "entropy": -(q * q.log()).sum(),
        "reverse_kl": (q * (q / p).log()).sum(),
        "forward_kl": (p * (p / q).log()).sum(),
        "overlap": torch.tensor(0.75),
    }
    for name, value in expected.items():
        assert getattr(found, name).item() == pytest.approx(value.item()), name
    alone = measure(q.log()[None], head, torch.tensor([1]))
    assert alone.reverse_kl is None
    assert alone.entropy.item() == pytest.approx(expected["entropy"].item())


@pytest.mark.parametrize("words", [1, 2, 3, 50])
@pytest.mark.parametrize("soft_cap", [None, 1.5])
def test_log_probs_of_drawn_tokens_do_not_depend_on_how_the_vocabulary_is_parted(
    words, soft_cap, monkeypatch
):
    torch.manual_seed(0)
    weight, bias = 3 * torch.randn(57, 4), torch.randn(57)
    head = Head(weight=weight, bias=bias, scale=0.7, soft_cap=soft_cap, vocabulary=55)
    hidden, ids = torch.randn(5, 4), torch.tensor([0, 1, 2, 50, 54])
    monkeypatch.setattr(divergence, "PART_LOGITS", (len(hidden) * words,) * 2)
    for temperature, found in zip(
        (1.0, 0.6), drawn_logprobs(hidden, head, ids, temperatures=(1.0, 0.6)), strict=True
    ):
        want = torch.log_softmax(head.logits(hidden).double() / temperature, -1).gather(1, ids[:, None])[:, 0]
        torch.testing.assert_close(found, want.float())


def test_nothing_to_measure_gives_nothing():
    head, none = Head(weight=torch.randn(5, 3), vocabulary=5), torch.zeros(0, dtype=torch.int64)
    found = measure(torch.zeros(0, 3), head, none, teacher_hidden=torch.zeros(0, 3), teacher=head)
    assert found.reverse_kl is not None
    assert len(found.reverse_kl) == len(found.logprobs) == 0
    assert [len(rows) for rows in drawn_logprobs(torch.zeros(0, 3), head, none)] == [0]

"""A head read from a model gives that model's own logits, or is refused by the name of its class."""

import numpy as np
import pytest
import torch
from minillm_ray.common.divergence import drawn_logprobs, measure
from minillm_ray.common.errors import ModelError
from minillm_ray.common.heads import Head, check_head, final_hidden, longest_shared, read_head
from minillm_ray.common.packing import MOST_ROW, pack
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SMALL = {
    "vocab_size": 120,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 64, "rotary_dim": 16}
FAMILIES = {
    "gpt2": GPT,
    "gptj": GPT,
    "gpt_neox": {},
    "llama": {},
    "mistral": {"num_key_value_heads": 1},
    "qwen2": {"num_key_value_heads": 1},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    "phi": {},
    "gemma2": {"head_dim": 32, "num_key_value_heads": 1, "final_logit_softcapping": 1.5},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0},
    "olmo2": {},
}


def tiny(family: str, **changes) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **SMALL, **{**FAMILIES.get(family, {}), **changes})
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


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
        out = torch.empty(14, 110)
        tempered = head.scaled_logits(hidden.flatten(0, 1), 0.7, out)
        assert tempered.data_ptr() == out.data_ptr()
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


@pytest.mark.parametrize("family", FAMILIES)
def test_models_that_may_share_rows_read_each_sequence_as_if_alone(family: str):
    model = tiny(family)
    assert longest_shared(model) >= 64
    begin = [3, 4, 5, 6]
    words = [np.array([*begin, *range(7, 7 + n)], np.int32) for n in (9, 5, 4, 2)]
    words += [np.array([*words[0][:6], 50, 51], np.int32), np.array([60, 61, 62], np.int32)]
    packed = pack(words, together=1000)
    assert packed.places is not None
    assert packed.sees is not None
    ids, places, sees = map(torch.from_numpy, (packed.ids, packed.places, packed.sees))
    with torch.no_grad():
        together = final_hidden(model, ids, places=places, sees=sees).flatten(0, 1)
        for word, slots in zip(words, packed.slots, strict=True):
            alone = final_hidden(model, torch.from_numpy(word.astype(np.int64))[None])[0]
            torch.testing.assert_close(together[torch.from_numpy(slots)], alone, rtol=1e-4, atol=1e-5)


def test_a_family_that_takes_no_positions_shares_no_rows():
    assert longest_shared(tiny("bloom", n_layer=2, n_head=2)) == 0


def test_a_model_with_a_window_longest_shared_of_what_fits_into_it():
    model = tiny("mistral", sliding_window=8)
    assert longest_shared(model) == 8
    words = [np.arange(3 + n, 11 + n, dtype=np.int32) for n in range(4)]
    words[1][:3] = words[0][:3]
    packed = pack(words, together=8)
    assert packed.sees is not None
    ids, places, sees = (
        torch.from_numpy(a) for a in (packed.ids, packed.places, packed.sees) if a is not None
    )
    with torch.no_grad():
        together = final_hidden(model, ids, places=places, sees=sees).flatten(0, 1)
        for word, slots in zip(words, packed.slots, strict=True):
            alone = final_hidden(model, torch.from_numpy(word.astype(np.int64))[None])[0]
            torch.testing.assert_close(together[torch.from_numpy(slots)], alone, rtol=1e-4, atol=1e-5)
    assert pack([np.arange(9, dtype=np.int32), *words], together=longest_shared(model)).sees is None


def test_a_model_in_16_bits_longest_shared_too():
    assert longest_shared(tiny("llama").bfloat16()) > 0


def test_a_window_of_attention_bounds_what_longest_shared():
    model = tiny("llama")
    assert longest_shared(model) == MOST_ROW
    model.config.sliding_window = 64
    assert longest_shared(model) == 64
    model.config.window_size = 64
    assert longest_shared(model) == 0


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


def test_nothing_to_measure_gives_nothing():
    head, none = Head(weight=torch.randn(5, 3), vocabulary=5), torch.zeros(0, dtype=torch.int64)
    found = measure(torch.zeros(0, 3), head, none, teacher_hidden=torch.zeros(0, 3), teacher=head)
    assert found.reverse_kl is not None
    assert len(found.reverse_kl) == len(found.logprobs) == 0
    assert len(drawn_logprobs(torch.zeros(0, 3), head, none)) == 0

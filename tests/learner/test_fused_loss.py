"""The fused loss equals the plain one, value and gradients, and never makes a [tokens, vocabulary] tensor."""

import math
import weakref
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from minillm_ray.common.config.objective import DIVERGENCES, ObjectiveConfig
from minillm_ray.common.divergence import drawn_logprobs, measure
from minillm_ray.common.heads import Head, final_hidden, read_head
from minillm_ray.learner import fused_loss as fused_loss_module
from minillm_ray.learner.divergences import CROSS_ENTROPY, REVERSE_KL, Divergence, divergence_of
from minillm_ray.learner.fused_loss import even_size, fused_loss
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

LIMIT = 1e-5
KINDS = (*DIVERGENCES, "cross_entropy", None)
CONSTANT_SHARES = "akl"
"""The one whose gradient is not the slope of its value: its shares are constants by definition."""
JSD_BETA, SKEW, AKL_MASS = 0.3, 0.2, 0.6
KINDS_OF_HEAD = {
    "plain": {},
    "bias": {"bias": True},
    "scaled": {"bias": True, "scale": 0.3},
    "soft_capped": {"bias": True, "scale": 2.0, "soft_cap": 5.0},
}


class Problem:
    """Student and teacher of unequal widths and padded heads, and a loss that bends in both its arguments."""

    def __init__(self, *, tokens=37, words=300, cut=290, dtype=torch.float32, temperature=1.0, **head):
        torch.manual_seed(0)
        self.temperature = temperature
        self.hidden = torch.randn(tokens, 16).to(dtype).requires_grad_()
        self.weight = torch.randn(words, 16).to(dtype).requires_grad_()
        self.bias = torch.randn(words).to(dtype).requires_grad_() if head.pop("bias", False) else None
        self.student = Head(weight=self.weight, bias=self.bias, vocabulary=cut, **head)
        self.teacher = Head(weight=(0.5 * torch.randn(words + 8, 24)).to(dtype), vocabulary=cut)
        self.teacher_hidden = torch.randn(tokens, 24).to(dtype)
        self.ids = torch.randint(0, cut, (tokens,))
        self.by_divergence, self.by_logprob = torch.randn(2, tokens)
        self.hard = torch.rand(tokens) < 0.5

    @property
    def inputs(self) -> list[Tensor]:
        return [x for x in (self.hidden, self.weight, self.bias) if x is not None]

    def token_loss(self, divergence: Tensor, logprob: Tensor, tokens: slice):
        a, b = (x[tokens].to(divergence.dtype) for x in (self.by_divergence, self.by_logprob))
        return a * divergence + b * torch.exp(0.2 * logprob), {"twice": 2 * divergence}

    def by_name(self, name: str | None) -> Divergence | None:
        """One of the family, with settings that are not the defaults."""
        if name is None or name == "cross_entropy":
            return CROSS_ENTROPY if name else None
        settings = {"divergence": name, "jsd_beta": JSD_BETA, "skew": SKEW, "akl_mass": AKL_MASS}
        return divergence_of(ObjectiveConfig.model_validate({"kind": "kd", **settings}), self.hard)

    def fused(
        self, divergence: str | None, *, divisor: float = 11.0, chunk_tokens: int = 8, overlap: bool = False
    ):
        return fused_loss(
            self.hidden,
            self.student,
            self.ids,
            self.token_loss,
            divisor=divisor,
            teacher_hidden=self.teacher_hidden,
            teacher=self.teacher,
            divergence=self.by_name(divergence),
            temperature=self.temperature,
            overlap=overlap,
            chunk_tokens=chunk_tokens,
        )

    def plain(self, divergence, dtype=torch.float64) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, divergence [N], log q [N]) with all logits at once, everything behind them in `dtype`."""
        log_q, log_p = (
            (head.logits(hidden).to(dtype) / self.temperature).log_softmax(-1)
            for head, hidden in ((self.student, self.hidden), (self.teacher, self.teacher_hidden))
        )  # fmt: skip
        p, q = log_p.exp(), log_q.exp()
        if divergence is None:
            value = log_q.new_zeros(len(log_q))
        elif divergence == "cross_entropy":
            value = -(p * log_q).sum(-1)
        else:
            value = PLAIN[divergence](p, q, self)
        logprob = log_q.gather(1, self.ids[:, None])[:, 0]
        loss = self.token_loss(value, logprob, slice(None))[0].sum(dtype=torch.float64) / 11.0
        return loss, value, logprob


def kl(a: Tensor, b: Tensor) -> Tensor:
    return (a * (a / b).log()).sum(-1)


def plain_akl(p: Tensor, q: Tensor, problem: Problem) -> Tensor:
    """Word by word, as arXiv 2404.02657 and its code have it."""
    values = []
    for row_p, row_q in zip(p, q, strict=True):
        mass, head, tail = 0.0, 0.0, 0.0
        for index, word in enumerate(row_p.argsort(descending=True).tolist()):
            mass += row_p[word].item()
            gap = (row_p[word] - row_q[word]).abs().item()
            head, tail = (head + gap, tail) if index == 0 or mass <= AKL_MASS else (head, tail + gap)
        fraction = head / (head + tail)
        values.append(fraction * kl(row_p, row_q) + (1 - fraction) * kl(row_q, row_p))
    return torch.stack(values)


def plain_atkd(p: Tensor, q: Tensor, problem: Problem) -> Tensor:
    """The two parts of the forward KL, as arXiv 2402.11890 has them, without the factor of doubt."""
    values = []
    for row_p, row_q, gold, hard in zip(p, q, problem.ids, problem.hard, strict=True):
        keep = torch.arange(len(row_p)) != gold
        among = kl(row_p[keep] / row_p[keep].sum(), row_q[keep] / row_q[keep].sum())
        token = kl(
            torch.stack([row_p[gold], row_p[keep].sum()]), torch.stack([row_q[gold], row_q[keep].sum()])
        )
        values.append(among + token if hard else among)
    return torch.stack(values)


PLAIN: dict[str, Callable[[Tensor, Tensor, Problem], Tensor]] = {
    "reverse_kl": lambda p, q, _: kl(q, p),
    "forward_kl": lambda p, q, _: kl(p, q),
    "jeffreys": lambda p, q, _: kl(p, q) + kl(q, p),
    "jsd": lambda p, q, _: (
        JSD_BETA * kl(p, JSD_BETA * p + (1 - JSD_BETA) * q)
        + (1 - JSD_BETA) * kl(q, JSD_BETA * p + (1 - JSD_BETA) * q)
    ),
    "skew_kl": lambda p, q, _: kl(p, SKEW * p + (1 - SKEW) * q),
    "skew_reverse_kl": lambda p, q, _: kl(q, (1 - SKEW) * p + SKEW * q),
    "total_variation": lambda p, q, _: (p - q).abs().sum(-1) / 2,
    "akl": plain_akl,
    "atkd": plain_atkd,
}


def off(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value."""
    found, expected = found.detach().double(), expected.detach().double()
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", KINDS_OF_HEAD)
def test_values_and_gradients_equal_the_plain_way(kind: str, temperature: float, divergence):
    for dtype, limit in ((torch.float32, LIMIT), (torch.float64, 1e-12)):
        problem = Problem(dtype=dtype, temperature=temperature, **KINDS_OF_HEAD[kind])
        result = problem.fused(divergence)
        loss, value, logprob = problem.plain(divergence)
        assert off(result.loss, loss) <= limit
        assert off(result.divergence, value) <= limit
        assert off(result.logprobs, logprob) <= limit
        assert torch.equal(result.figures["twice"], 2 * result.divergence)
        found = torch.autograd.grad(3.0 * result.loss, problem.inputs)
        expected = torch.autograd.grad(3.0 * loss, problem.inputs)
        plain = torch.autograd.grad(3.0 * problem.plain(divergence, dtype)[0], problem.inputs)
        for f, e, p in zip(found, expected, plain, strict=True):
            assert off(f, e) <= max(limit, off(p, e))  # no worse than the plain way in the same precision


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradients_are_the_slopes_of_the_value(divergence):
    problem = Problem(
        tokens=5, words=13, cut=11, dtype=torch.float64, temperature=1.3, bias=True, soft_cap=4.0
    )
    gradients = torch.autograd.grad(problem.fused(divergence).loss, problem.inputs)
    step = 1e-6
    for tensor, gradient in zip(problem.inputs, gradients, strict=True):
        flat, slopes = tensor.detach().view(-1), []
        for i in range(len(flat)):
            values = []
            for move in (step, -step):
                flat[i] += move
                values.append(problem.fused(divergence).loss.item())
                flat[i] -= move
            slopes.append((values[0] - values[1]) / (2 * step))
        if divergence != CONSTANT_SHARES:
            assert torch.allclose(torch.tensor(slopes).double(), gradient.view(-1), atol=1e-7)


@given(st.integers(0, 5000), st.integers(1, 700))
def test_chunks_are_as_few_as_can_be_and_none_is_much_smaller_than_another(count: int, most: int):
    size = even_size(count, most)
    chunks = [min(size, count - start) for start in range(0, count, max(size, 1))]
    assert sum(chunks) == count
    assert max(chunks, default=0) <= most
    assert len(chunks) == math.ceil(count / most)
    # What the last one lacks is less than a position for each of the chunks.
    assert not chunks or max(chunks) - min(chunks) < len(chunks)


@pytest.mark.parametrize("chunk_tokens", [1, 5, 37, 1000])
def test_the_chunk_size_changes_nothing(chunk_tokens: int):
    problem = Problem(dtype=torch.float64)
    expected, found = problem.fused("reverse_kl"), problem.fused("reverse_kl", chunk_tokens=chunk_tokens)
    assert off(found.loss, expected.loss) < 1e-13
    pairs = zip(*(torch.autograd.grad(r.loss, problem.inputs) for r in (found, expected)), strict=True)
    assert all(off(f, e) < 1e-12 for f, e in pairs)


@pytest.mark.parametrize("kind", KINDS_OF_HEAD)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_how_many_rows_are_walked_at_once_changes_nothing(
    kind: str, divergence: str | None, monkeypatch: pytest.MonkeyPatch
):
    problem = Problem(dtype=torch.float64, **KINDS_OF_HEAD[kind])
    expected = problem.fused(divergence, overlap=True)
    monkeypatch.setattr(fused_loss_module, "PART_LOGITS", (3 * 290,) * 2)  # of the 8 rows of a chunk
    found = problem.fused(divergence, overlap=True)
    assert off(found.loss, expected.loss) < 1e-13
    for name, values in expected.figures.items():
        assert off(found.figures[name], values) < 1e-13
    pairs = zip(*(torch.autograd.grad(r.loss, problem.inputs) for r in (found, expected)), strict=True)
    assert all(off(f, e) < 1e-12 for f, e in pairs)


def test_words_beyond_the_common_vocabulary_get_no_gradient():
    problem = Problem(bias=True)
    problem.fused("reverse_kl").loss.backward()
    for tensor in (problem.weight, problem.bias):
        assert tensor is not None
        assert tensor.grad is not None
        assert tensor.grad[:290].any()
        assert not tensor.grad[290:].any()


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl"])
def test_in_sixteen_bits_gradients_are_no_worse_than_the_plain_ways(divergence):
    low = Problem(tokens=512, dtype=torch.bfloat16, scale=0.5)
    exact = Problem(tokens=512, dtype=torch.bfloat16, scale=0.5)
    exact.hidden, exact.weight = (x.detach().double().requires_grad_() for x in (low.hidden, low.weight))
    exact.student = Head(weight=exact.weight, vocabulary=290, scale=0.5)
    exact.teacher = Head(weight=low.teacher.weight.double(), vocabulary=290)
    exact.teacher_hidden = low.teacher_hidden.double()
    truth = torch.autograd.grad(exact.plain(divergence)[0], exact.inputs)
    fused = low.fused(divergence)
    assert fused.loss.dtype == fused.divergence.dtype == torch.float32
    found = torch.autograd.grad(fused.loss, low.inputs)
    plain = torch.autograd.grad(low.plain(divergence, torch.float32)[0], low.inputs)
    for f, p, t in zip(found, plain, truth, strict=True):
        assert f.dtype == torch.bfloat16
        assert off(f, t) <= max(1.25 * off(p, t), 4e-3)


def test_extreme_logits_stay_finite():
    problem = Problem(tokens=4)
    problem.hidden = (problem.hidden.detach() * 200).requires_grad_()
    problem.teacher_hidden = problem.teacher_hidden * 200
    for divergence in DIVERGENCES:
        result = problem.fused(divergence)
        gradients = torch.autograd.grad(result.loss, [problem.hidden, problem.weight])
        assert math.isfinite(result.loss.item())
        assert all(g.isfinite().all() for g in gradients)


def test_an_empty_micro_batch_has_a_zero_loss_with_zero_gradients():
    problem = Problem(tokens=0, bias=True)
    result = problem.fused("reverse_kl", overlap=True)
    result.loss.backward()
    assert result.loss.item() == 0
    assert result.divergence.shape == result.logprobs.shape == (0,)
    assert all(x.grad is not None and not x.grad.any() for x in problem.inputs)


def test_only_what_is_trained_gets_a_gradient():
    problem = Problem()
    problem.weight.requires_grad_(False)
    problem.fused("reverse_kl").loss.backward()
    assert problem.hidden.grad is not None
    assert problem.weight.grad is None
    with torch.no_grad():
        assert not problem.fused("reverse_kl").loss.requires_grad


def test_backward_runs_once():
    loss = Problem().fused("reverse_kl").loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        loss.backward()


def test_a_missing_teacher_and_unequal_vocabularies_are_refused():
    problem = Problem()
    problem.teacher = Head(weight=problem.teacher.weight, vocabulary=280)
    with pytest.raises(ValueError, match=r"290.*280"):
        problem.fused("reverse_kl")
    with pytest.raises(ValueError, match="teacher"):
        fused_loss(problem.hidden, problem.student, problem.ids, problem.token_loss, divisor=1, overlap=True)


def test_the_overlap_is_the_mass_in_common():
    problem = Problem(temperature=0.6)
    q, p = (
        (head.logits(hidden) / 0.6).softmax(-1)
        for head, hidden in ((problem.student, problem.hidden), (problem.teacher, problem.teacher_hidden))
    )
    for divergence in DIVERGENCES:
        overlap = problem.fused(divergence, overlap=True).figures["overlap"]
        assert off(overlap, torch.minimum(q, p).sum(-1)) < LIMIT
    assert "overlap" not in problem.fused("reverse_kl").figures


class LargestTensor(TorchDispatchMode):
    """Notes the most elements that any tensor made meanwhile has."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_no_tensor_of_tokens_times_vocabulary_is_ever_made(divergence):
    problem = Problem(tokens=400)
    with LargestTensor() as largest:
        problem.fused(divergence, chunk_tokens=20, overlap=True).loss.backward()
    assert largest.elements <= max(20 * 290, problem.weight.numel(), problem.teacher.weight.numel())
    with LargestTensor() as largest:
        problem.plain("reverse_kl")
    assert largest.elements == 400 * 290


def test_only_one_chunk_has_logits_at_a_time(monkeypatch: pytest.MonkeyPatch):
    problem, made, most = Problem(tokens=40), [], 0
    whole = Head.scaled_logits

    def counted(self: Head, *args) -> Tensor:
        nonlocal most
        logits = whole(self, *args)
        made.append(weakref.ref(logits))
        most = max(most, sum(ref() is not None for ref in made))
        return logits

    monkeypatch.setattr(Head, "scaled_logits", counted)
    problem.fused("reverse_kl", chunk_tokens=10)
    measure(
        problem.hidden,
        problem.student,
        problem.ids,
        teacher_hidden=problem.teacher_hidden,
        teacher=problem.teacher,
        chunk_tokens=10,
    )
    assert len(made) == 16
    assert most == 2  # the student's and the teacher's


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_of_a_whole_model_with_tied_and_untied_embeddings(tied: bool):
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=tied,
    )  # fmt: skip
    model, ids = LlamaForCausalLM(config), torch.randint(0, 96, (2, 9))
    teacher = Head(weight=0.3 * torch.randn(100, 32), vocabulary=90)
    teacher_hidden = torch.randn(18, 32)

    def token_loss(divergence: Tensor, logprob: Tensor, tokens: slice):
        return divergence - 0.5 * logprob, {}

    drawn = ids.flatten() % 90
    log_q = model(input_ids=ids).logits.flatten(0, 1)[:, :90].log_softmax(-1)
    log_p = teacher.logits(teacher_hidden).log_softmax(-1)
    kl = (log_q.exp() * (log_q - log_p)).sum(-1)
    token_loss(kl, log_q.gather(1, drawn[:, None])[:, 0], slice(None))[0].mean().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    fused_loss(
        final_hidden(model, ids).flatten(0, 1),
        read_head(model, 90),
        drawn,
        token_loss,
        divisor=18,
        teacher_hidden=teacher_hidden,
        teacher=teacher,
        divergence=REVERSE_KL,
        chunk_tokens=7,
    ).loss.backward()
    assert ("lm_head.weight" in expected) != tied
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert off(parameter.grad, expected[name]) <= LIMIT, name


def test_measured_figures_equal_those_of_the_loss():
    problem = Problem(temperature=0.8, bias=True)
    with torch.no_grad():
        found = measure(
            problem.hidden,
            problem.student,
            problem.ids,
            teacher_hidden=problem.teacher_hidden,
            teacher=problem.teacher,
            temperature=0.8,
            chunk_tokens=9,
        )
    alone = drawn_logprobs(problem.hidden, problem.student, problem.ids, temperatures=[0.8])[0]
    for divergence, figure in (("reverse_kl", found.reverse_kl), ("forward_kl", found.forward_kl)):
        result = problem.fused(divergence, overlap=True)
        assert figure is not None
        assert found.overlap is not None
        assert off(figure, result.divergence) < LIMIT
        assert off(found.overlap, result.figures["overlap"]) < LIMIT
        assert off(found.logprobs, result.logprobs) < LIMIT
        assert off(alone, result.logprobs) < LIMIT

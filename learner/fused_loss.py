"""Student head, teacher head and full-vocabulary loss in one: exact, with no [tokens, vocabulary] tensor.

The answer positions are processed in chunks. Only one chunk has logits at a time, and its gradient overwrites
them in closed form, already in the forward pass, so nothing is computed twice and backward only scales.
Products are fast for many positions at once. Between them there are a dozen passes over the vocabulary, which
are made for a few rows at a time, so that a CPU's caches hold them from the first pass to the last.

With q = softmax(z), D = log q - log p and z the student's logits over the temperature:

    drawn token     log q(y)           d/dz = onehot(y) - q
    reverse KL      sum q D            d/dz = q (D - KL)       and so on, see `divergences`
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..common.divergence import PART_LOGITS, shared_mass
from ..common.heads import Head
from ..common.onednn_linear import linear
from .divergences import Divergence
from .logprob_cache import CachedRows
from .objective import TokenLoss

CHUNK_TOKENS = 512
"""Positions per chunk by default: above it buffers grow without gain."""

_LOW_PRECISION_ROWS = 8192
"""Vocabulary rows per product where gradients in low precision are added to wide sums."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FusedLoss:
    """The loss of N positions, and figures of each of them; all but `loss` detached."""

    loss: Tensor
    """Scalar: sum of token losses over the divisor, in float32 at least. Its backward can run once."""
    divergence: Tensor
    """[N] nats; zeros where no divergence was asked for."""
    logprobs: Tensor
    """[N] log q of the drawn token."""
    figures: dict[str, Tensor]
    """[N] each: what the token loss reports by name, and `overlap` (sum of min(p, q)) if asked for."""


def fused_loss(
    hidden: Tensor,
    student: Head,
    ids: Tensor,
    token_loss: TokenLoss,
    *,
    divisor: float,
    teacher_hidden: Tensor | None = None,
    teacher: Head | None = None,
    divergence: Divergence | None = None,
    temperature: float = 1.0,
    overlap: bool = False,
    chunk_tokens: int = CHUNK_TOKENS,
    cached: CachedRows | None = None,
) -> FusedLoss:
    """Sum of `token_loss` over N positions / `divisor`, with gradients to `hidden` and the student head.

    `hidden` [N, H]: inputs of the student's output layer; `ids` [N] int64: the drawn tokens, each below the
    vocabulary; `teacher_hidden` [N, H_teacher] with the frozen `teacher` head, needed for a `divergence` or
    the `overlap`. `token_loss` gets a chunk at a time and must treat tokens independently of each other.
    `cached` rows replace the product with the teacher's head where they are known, and are written where not.
    N = 0 is allowed and gives a zero loss with zero gradients. The divisor counts the whole optimiser step,
    so that parts of a batch add up.
    """
    if (divergence or overlap) and (teacher is None or teacher_hidden is None):
        name = divergence.name if divergence else "the overlap"
        raise ValueError(f"{name} needs the teacher's hidden states and head")
    if teacher is not None and teacher.vocabulary != student.vocabulary:
        raise ValueError(
            f"heads must be cut to one vocabulary; student {student.vocabulary}, teacher {teacher.vocabulary}"
        )
    job = _Job(
        student=student,
        ids=ids,
        token_loss=token_loss,
        divisor=divisor,
        teacher=teacher if divergence or overlap else None,
        teacher_hidden=teacher_hidden,
        divergence=divergence,
        temperature=temperature,
        overlap=overlap,
        chunk_tokens=chunk_tokens,
        cached=cached,
        wants_gradient=torch.is_grad_enabled(),
    )
    loss = _Fused.apply(hidden, student.weight, student.bias, job)
    figures = {name: torch.cat(parts) for name, parts in job.parts.items()}
    empty = hidden.new_zeros(0, dtype=job.dtype)
    return FusedLoss(
        loss=loss,
        divergence=figures.pop("divergence", empty),
        logprobs=figures.pop("logprobs", empty),
        figures=figures,
    )


@dataclass(kw_only=True, eq=False)
class _Job:
    """One call: its inputs, and the per-token figures that its chunks leave behind."""

    student: Head
    ids: Tensor
    token_loss: TokenLoss
    divisor: float
    teacher: Head | None
    teacher_hidden: Tensor | None
    divergence: Divergence | None
    temperature: float
    overlap: bool
    chunk_tokens: int
    cached: CachedRows | None
    wants_gradient: bool
    parts: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))

    @property
    def dtype(self) -> torch.dtype:
        """The type that logits are normalised and gradients are summed in."""
        return torch.promote_types(self.student.weight.dtype, torch.float32)

    def teacher_logits(self, tokens: slice) -> Tensor | None:
        """The teacher's logits [n, V] of a chunk; None where no product with its head is needed."""
        known = self.cached is not None and self.cached.known
        if known or self.teacher is None or self.teacher_hidden is None:
            return None
        return self.teacher.scaled_logits(self.teacher_hidden[tokens], self.temperature, self.dtype)

    def teacher_logprobs(self, logits: Tensor | None, tokens: slice) -> Tensor | None:
        """log p [n, V] of some rows, in place of their logits; None where no teacher is needed."""
        if logits is None:
            return None if self.teacher is None or self.cached is None else self.cached.read(tokens)
        log_p = torch.log_softmax(logits, -1, out=logits)
        if self.cached is not None:
            self.cached.write(tokens, log_p)
        return log_p

    def rows_loss(self, divergence: Tensor, logprob: Tensor, tokens: slice) -> tuple[Tensor, Tensor, Tensor]:
        """(sum of some rows' token losses, d/d divergence [n], d/d log q [n]), over the divisor already."""
        with torch.enable_grad():
            inputs = divergence.detach().requires_grad_(), logprob.detach().requires_grad_()
            losses, figures = self.token_loss(*inputs, tokens)
            total = losses.sum(dtype=torch.float64) / self.divisor
        by_divergence, by_logprob = torch.autograd.grad(
            total, inputs, allow_unused=True, materialize_grads=True
        )
        for name, values in {"divergence": divergence, "logprobs": logprob, **figures}.items():
            self.parts[name].append(values.detach())
        return total.detach(), by_divergence, by_logprob


class _Gradients:
    """Where the chunks' gradients add up; only what autograd asks for is made."""

    def __init__(self, inputs: tuple[Tensor, Tensor, Tensor | None], wanted: tuple[bool, ...], job: _Job):
        hidden, weight, bias = inputs
        self._head, self._factor, self._dtype = job.student, job.student.scale / job.temperature, job.dtype
        self.hidden = torch.empty_like(hidden) if wanted[0] else None
        self._weight = torch.empty_like(weight, dtype=job.dtype) if wanted[1] else None
        self.bias = bias.new_zeros(bias.shape, dtype=job.dtype) if bias is not None and wanted[2] else None
        self._begun = False
        self.wanted = any(wanted[:3])

    def whole_weight(self) -> Tensor | None:
        """The head's gradient, zeros in the rows that no chunk wrote."""
        if self._weight is not None:
            self._weight[self._head.vocabulary if self._begun else 0 :].zero_()
        return self._weight

    def add(self, slope: Tensor, hidden: Tensor, tokens: slice) -> None:
        """Take the loss's derivative in the chunk's logits (before scale and temperature) [n, vocabulary]."""
        words, weight = self._head.vocabulary, self._head.weight.detach()
        if self.bias is not None:
            self.bias[:words].add_(slope.sum(0), alpha=self._factor)
        narrow = slope.to(weight.dtype)
        if self.hidden is not None:
            product = linear(narrow, weight[:words].T)
            self.hidden[tokens] = product if self._factor == 1.0 else product * self._factor
        if self._weight is None:
            return
        scaled = (hidden.to(self._dtype) * self._factor).to(weight.dtype)
        sums = self._weight[:words]
        if weight.dtype != self._dtype:  # a product in low precision cannot be added to wide sums at once
            for start in range(0, words, _LOW_PRECISION_ROWS):
                rows = slice(start, min(start + _LOW_PRECISION_ROWS, words))
                product = torch.mm(narrow[:, rows].T, scaled)
                (sums[rows].add_ if self._begun else sums[rows].copy_)(product)
        elif self._begun:
            sums.addmm_(narrow.T, scaled)
        else:  # a pass over the vocabulary less than to add to zeros
            torch.mm(narrow.T, scaled, out=sums)
        self._begun = True


class _Fused(torch.autograd.Function):
    """Loss and gradients in one forward pass; backward returns the gradients, times the incoming scalar."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, job: _Job) -> Tensor:
        wanted = ctx.needs_input_grad if job.wants_gradient else (False, False, False)
        gradients = _Gradients((hidden, weight, bias), wanted, job)
        size = even_size(len(hidden), job.chunk_tokens)
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        for start in range(0, len(hidden), size or 1):
            tokens = slice(start, min(start + size, len(hidden)))
            total += _walk_chunk(job, gradients, hidden.detach()[tokens], tokens)
        ctx.gradients, ctx.weight_dtype = gradients, weight.dtype
        return total.to(job.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, scale: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        gradients: _Gradients | None = ctx.gradients
        if gradients is None:
            raise RuntimeError("the fused loss gives its gradients away: its backward can run only once")
        ctx.gradients = None
        # Reading a number from a GPU means waiting for it; there the pass over the vocabulary is cheap.
        as_they_are = scale.device.type == "cpu" and scale.item() == 1.0
        hidden, weight, bias = (
            gradient if gradient is None or as_they_are else gradient.mul_(scale)
            for gradient in (gradients.hidden, gradients.whole_weight(), gradients.bias)
        )
        return (
            hidden,
            None if weight is None else weight.to(ctx.weight_dtype),
            None if bias is None else bias.to(ctx.weight_dtype),
            None,
        )


def even_size(count: int, most: int) -> int:
    """Of the fewest chunks of at most `most`, made alike: products of few positions are slow."""
    return -(-count // max(1, -(-count // most)))


def _walk_chunk(job: _Job, gradients: _Gradients, hidden: Tensor, tokens: slice) -> Tensor:
    """One chunk's loss; its gradients go to `gradients`."""
    z = job.student.scaled_logits(hidden, job.temperature, job.dtype)
    teacher_z = job.teacher_logits(tokens)
    total = torch.zeros((), dtype=torch.float64, device=z.device)
    size = even_size(len(z), max(1, PART_LOGITS[z.device.type == "cuda"] // z.shape[1]))
    for start in range(0, len(z), size):
        rows = slice(start, min(start + size, len(z)))
        here = slice(tokens.start + rows.start, tokens.start + rows.stop)
        log_p = job.teacher_logprobs(None if teacher_z is None else teacher_z[rows], here)
        total += _walk_rows(job, gradients.wanted, z[rows], log_p, here)
    if gradients.wanted:
        gradients.add(z, hidden, tokens)
    return total


def _walk_rows(job: _Job, wants_slope: bool, z: Tensor, log_p: Tensor | None, tokens: slice) -> Tensor:
    """The loss of some rows; their logits z [n, V] become the loss's slope in them, log_p is overwritten."""
    capped = None if job.student.soft_cap is None else z.clone()
    log_q = torch.log_softmax(z, -1, out=z)
    ids = job.ids[tokens, None]
    logprob = log_q.gather(1, ids)[:, 0]
    if job.overlap and log_p is not None:
        job.parts["overlap"].append(shared_mass(log_q, log_p))
    if job.divergence is None or log_p is None:
        value, slope_of = log_q.new_zeros(len(log_q)), None
    else:
        value, slope_of = job.divergence.walk(log_q, log_p, ids, tokens)
    total, by_divergence, by_logprob = job.rows_loss(value, logprob, tokens)
    if wants_slope:
        if slope_of is None:
            slope = log_q.exp_().mul_(-by_logprob[:, None])
        else:
            slope = slope_of(by_divergence[:, None], by_logprob[:, None])
        slope.scatter_add_(1, ids, by_logprob[:, None])
        if capped is not None and job.student.soft_cap is not None:  # d/dx of cap tanh(x / cap) is 1 - tanh^2
            tanh_squared = capped.mul_(job.temperature / job.student.soft_cap).square_()
            slope.addcmul_(slope, tanh_squared, value=-1.0)
        if slope is not z:
            z.copy_(slope)
    return total

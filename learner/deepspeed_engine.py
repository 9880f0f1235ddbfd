"""DeepSpeed behind TrainEngine.

What does not fit is undone or replaced. DeepSpeed averages gradients over ranks, while losses here are
divided by the whole step already. It counts micro-batches, while their number varies from step to step:
`managed_gradient_accumulation: false` makes `step` the boundary, at every ZeRO stage. At stage 0 it steps
whatever the gradient is, so the norm is taken and clipped in a hook of the optimiser instead.
"""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, get_scheduler
from transformers.utils.logging import disable_progress_bar

from ..common import onednn_linear, torch_compat
from ..common.config.run import LearnerConfig, ModelConfig, OptimizerConfig
from ..common.errors import ModelError
from ..common.heads import Head, check_head, read_head
from ..common.packed_attention import enable_packing, read
from ..common.transformers_compat import exact_attention
from . import deepspeed_compat
from .batching import Batch
from .engine import Result
from .fused_loss import FusedLoss

SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine_with_min_lr"}
MOST_BUCKET_ELEMENTS = 200_000_000
"""Gradient elements that ranks exchange at once."""
LONGEST_MEETING = timedelta(minutes=30)
TAG = "state"


def join(
    rank: int, world: int, address: str, port: int, listen_socket: socket.socket | None = None
) -> torch.device:
    """Connect to the other ranks; the device to compute on. NCCL where this process has a GPU, else gloo.

    `listen_socket`, on rank 0 alone, is the socket that listens at `address` and `port`. A port that was only
    looked up could be taken by anyone until rank 0 has imported torch.
    """
    has_gpu = torch.cuda.is_available()
    os.environ.update(RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(world))
    os.environ["DS_ACCELERATOR"] = "cuda" if has_gpu else "cpu"
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed 0.19.8 calls collectives by names that torch 2.13 gives up.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.c10d_logger")
    disable_progress_bar()
    deepspeed_compat.check()
    deepspeed_compat.do_without_kernel("deepspeed_shm_comm")  # would be compiled at run time, gloo or not
    backend, device = ("nccl", "cuda:0") if has_gpu else ("gloo", "cpu")
    store = dist.TCPStore(
        address,
        port,
        is_master=rank == 0,
        master_listen_fd=None if listen_socket is None else listen_socket.detach(),
        timeout=LONGEST_MEETING,
        wait_for_workers=False,
    )
    dist.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=world,
        timeout=LONGEST_MEETING,
        device_id=torch.device(device) if has_gpu and world > 1 else None,
    )
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    return torch.device(device)


class _Module(torch.nn.Module):
    """What DeepSpeed wraps: the student's body, then a function of chosen positions and the head."""

    def __init__(self, student: PreTrainedModel, head: Head):
        super().__init__()
        self.student = student
        self._head = head

    def forward(self, batch: Batch, use: Callable[[Tensor, Head], Any]) -> tuple[Tensor | None, Any]:
        """(the loss that DeepSpeed has to see, if there is one; whatever `use` made)."""
        whole = read(self.student, batch.ids, batch.layout)
        hidden = whole.flatten(0, 1).index_select(0, batch.positions)
        result = use(hidden, self._head)
        return (result.loss if isinstance(result, FusedLoss) else None), result


class DeepSpeedEngine:
    """One rank's share of the student, its gradients and its optimiser. `join` comes before."""

    def __init__(
        self,
        model: ModelConfig,
        learner: LearnerConfig,
        vocabulary: int,
        device: torch.device,
        *,
        dropout: bool,
    ):
        import deepspeed

        self.device = device
        self.stage = learner.effective_zero_stage
        self.student_config = AutoConfig.from_pretrained(model.path, revision=model.revision)
        self.student = load_student(model, learner, dropout=dropout)
        if self.stage == 0:  # ZeRO has a layout of its own
            _pack_shared(self.student)
        head = read_head(self.student, vocabulary)
        check_head(self.student, head)
        self.max_packed_len = enable_packing(self.student)
        module = _Module(self.student, head)
        if self.stage == 3:
            for parameter in (head.weight, head.bias):
                if parameter is not None:
                    deepspeed_compat.share_parameter(module, parameter)
        self._optimizer = _optimizer(self.student, learner.optimizer)
        self._norm, self._clip = 0.0, learner.max_grad_norm
        if self.stage == 0:
            self._optimizer.register_step_pre_hook(self._clip_before_step)
        self._engine: Any = deepspeed.initialize(
            model=module,
            optimizer=self._optimizer,
            lr_scheduler=lambda basic: _scheduler(basic, learner),
            config=_settings(learner, self.stage, sum(p.numel() for p in self.student.parameters())),
            dist_init_required=False,
        )[0]
        if self.stage == 0 and dist.get_world_size() == 1:
            # No other rank to add to; DeepSpeed would still copy every gradient into one tensor and back. Its
            # zeros for what had no gradient are made in `_clip_before_step`.
            deepspeed_compat.keep_gradients_local(self._engine)
            _add_rows_in_place(self.student)

    def run(self, batch: Batch, use: Callable[[Tensor, Head], Result], *, train: bool) -> Result:
        """See TrainEngine."""
        self._engine.train(train)
        with torch.set_grad_enabled(train):
            loss, result = self._engine(batch, use)
        # ZeRO-3 hangs its hooks on the tensor that comes out of the module, not on the one that went in.
        return result if loss is None else replace(result, loss=loss)

    def backward(self, loss: Tensor) -> None:
        """See TrainEngine."""
        self._engine.backward(loss * dist.get_world_size(), scale_wrt_gas=False)

    def step(self) -> float:
        """See TrainEngine."""
        self._engine.step()
        return self._norm if self.stage == 0 else deepspeed_compat.gradient_norm(self._engine)

    def _clip_before_step(self, optimizer: Any, *_: Any) -> None:
        """At stage 0: clip, or leave the optimiser nothing to step with where the norm is not finite."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for parameter in parameters:
            if parameter.grad is None:  # so momentum and decay move it, as with many ranks
                parameter.grad = torch.zeros_like(parameter)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        self._norm = norm.item()
        if not torch.isfinite(norm):
            optimizer.zero_grad(set_to_none=True)
        too_long = self._clip and self._norm > self._clip
        torch_compat.divide_gradients(optimizer, norm / self._clip if too_long else None)

    def rate(self) -> float:
        """See TrainEngine."""
        return float(self._optimizer.param_groups[0]["lr"])

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """See TrainEngine."""
        tensor = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def all_gather(self, value: Any) -> list[Any]:
        """See TrainEngine."""
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, value)
        return found

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See TrainEngine."""
        parameters = self.student.named_parameters()
        return {name: deepspeed_compat.whole_shape(p, self.stage) for name, p in parameters}

    @contextmanager
    def gathered(self, names: Sequence[str], *, write: bool = False) -> Iterator[Mapping[str, Tensor]]:
        """See TrainEngine."""
        parameters = dict(self.student.named_parameters())
        chosen = {name: parameters[name] for name in names}
        if self.stage == 3:
            with deepspeed_compat.gathered(list(chosen.values()), write=write):
                yield chosen
        else:
            yield chosen
            if write:
                for parameter in chosen.values():
                    dist.broadcast(parameter.data, 0)

    def parameters_changed(self) -> None:
        """See TrainEngine; ZeRO holds copies of its own."""
        if self.stage:
            deepspeed_compat.take_over_weights(self._engine)

    def save(self, folder: Path) -> None:
        """See TrainEngine."""
        self._engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)

    def load(self, folder: Path) -> None:
        """See TrainEngine."""
        self._engine.load_checkpoint(str(folder), tag=TAG)

    def close(self) -> None:
        """Leave the other ranks."""
        dist.destroy_process_group()


def load_student(model: ModelConfig, learner: LearnerConfig, *, dropout: bool) -> PreTrainedModel:
    """The student to train, whole, on the CPU; without `dropout` it answers alike in training mode.

    Raises ModelError if this machine cannot read it.
    """
    try:
        config = AutoConfig.from_pretrained(model.path, revision=model.revision)
        if not dropout:
            _switch_dropout_off(config)
        student = AutoModelForCausalLM.from_pretrained(
            model.path,
            revision=model.revision,
            config=config,
            attn_implementation=exact_attention(config),
            dtype=getattr(torch, learner.dtype),
            use_safetensors=True,
        )
    except OSError as missing:
        raise ModelError(
            f"student.path = {model.path} cannot be loaded: {missing}; every machine with a learner must"
            " see it"
        ) from missing
    if learner.gradient_checkpointing:
        student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    onednn_linear.use_in(student)
    return student


def _pack_shared(student: PreTrainedModel) -> None:
    """Make the parameters adjacent in memory, in order, so that they are published as few long arrays."""
    parameters = [p for p in student.parameters() if p.dtype == torch.float32]
    stretches = torch.empty(sum(p.numel() for p in parameters)).split([p.numel() for p in parameters])
    for parameter, stretch in zip(parameters, stretches, strict=True):
        parameter.data = stretch.view_as(parameter).copy_(parameter.data)


def _add_rows_in_place(student: PreTrainedModel) -> None:
    """Add the embedding's gradient, a few rows, to the weight's gradient in place.

    Autograd would make a matrix of zeros around them, and of tied weights a third one of the sum with the
    head's, which is there first.
    """
    embedding = student.get_input_embeddings()
    if type(embedding) is torch.nn.Embedding:
        embedding.register_forward_hook(_cut_off)


def _cut_off(embedding: torch.nn.Embedding, args: tuple[Tensor], output: Tensor) -> Tensor | None:
    if not output.requires_grad:
        return None
    weight, ids = embedding.weight, args[0].flatten()

    def add_rows(slope: Tensor) -> None:
        rows = slope.flatten(0, -2)
        if embedding.padding_idx is not None:  # has no gradient, as with torch
            rows = rows.masked_fill((ids == embedding.padding_idx)[:, None], 0)
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        weight.grad.index_add_(0, ids, rows)

    rows = output.detach().requires_grad_()
    rows.register_hook(add_rows)
    return rows


def _switch_dropout_off(config: PretrainedConfig) -> None:
    """At the source, since gradient checkpointing works in training mode only, where dropout is on.

    So is the noise that some mixtures of experts choose by.
    """
    for name, value in config.to_dict().items():
        if isinstance(value, float) and ("drop" in name or "jitter" in name):
            setattr(config, name, 0.0)


def _optimizer(student: PreTrainedModel, settings: OptimizerConfig) -> torch.optim.Optimizer:
    parameters = [p for p in student.parameters() if p.requires_grad]
    shared = {"lr": settings.lr, "weight_decay": settings.weight_decay, "fused": True}
    if settings.name == "sgd":
        return torch.optim.SGD(parameters, momentum=settings.betas[0], **shared)
    kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    return kind(parameters, betas=settings.betas, eps=settings.eps, **shared)


def _scheduler(optimizer: torch.optim.Optimizer, learner: LearnerConfig) -> Any:
    settings = learner.optimizer
    return get_scheduler(
        SCHEDULES[settings.schedule],
        optimizer,
        num_warmup_steps=settings.warmup_steps,
        num_training_steps=learner.max_steps,
        scheduler_specific_kwargs={"min_lr": settings.min_lr} if settings.schedule == "cosine" else {},
    )


def _settings(learner: LearnerConfig, stage: int, num_parameters: int) -> dict[str, Any]:
    """DeepSpeed's own configuration."""
    bucket = min(num_parameters, MOST_BUCKET_ELEMENTS)
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": False,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "stage3_prefetch_bucket_size": bucket,
        # What is smaller stays whole on every rank: of a large model, the biases and norms.
        "stage3_param_persistence_threshold": min(100_000, num_parameters // 1000),
    }
    if learner.offload == "cpu":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        if stage == 3:
            zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": learner.max_grad_norm if stage else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }
    if learner.dtype == "bfloat16":
        settings["bf16"] = {"enabled": True, "check_grad_overflow": True}
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings

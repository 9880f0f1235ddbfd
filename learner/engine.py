"""What the learner asks of whoever holds the student of one rank; DeepSpeed answers in deepspeed_engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor

from ..common.heads import Head
from .batching import Batch

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Result = TypeVar("Result")


class TrainEngine(Protocol):
    """One rank's part of the student, its gradients and its optimiser.

    All ranks make the same calls in the same order, since most of them exchange something.
    """

    device: torch.device
    max_packed_len: int
    """Longest answers that the student can read packed in shared rows as if each were alone; 0: none."""
    stage: int
    """Of ZeRO."""
    student: PreTrainedModel
    student_config: PretrainedConfig
    """As it is on disk; that of `student` has its dropout switched off where the run does."""

    def run(self, batch: Batch, use: Callable[[Tensor, Head], Result], *, train: bool) -> Result:
        """`use` on the inputs of the output layer at the batch's positions, and the head."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of this rank's part of the step's loss to what is there."""
        ...

    def step(self) -> float:
        """Move the weights, unless the gradient's global norm is not finite; that norm, before clipping."""
        ...

    def rate(self) -> float:
        """The learning rate of the next step."""
        ...

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over ranks, in float64."""
        ...

    def all_gather(self, value: Any) -> list[Any]:
        """The value of each rank; also a barrier."""
        ...

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter's name and whole shape, by the names of the Hugging Face model; tied ones once."""
        ...

    def gathered(
        self, names: Sequence[str], *, write: bool = False
    ) -> AbstractContextManager[Mapping[str, Tensor]]:
        """These parameters whole, for the length of the block.

        With `write`, what rank 0 leaves in them is what all ranks hold afterwards.
        """
        ...

    def parameters_changed(self) -> None:
        """Tell the optimiser that the weights were written to."""
        ...

    def save(self, folder: Path) -> None:
        """Weights, optimiser and schedule into `folder`: this rank's part."""
        ...

    def load(self, folder: Path) -> None:
        """What `save` wrote, on as many ranks as then."""
        ...

"""Tensors as the arrays that messages carry, and back; numpy has no bfloat16, so its bits travel."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def bits_of(tensor: Tensor) -> npt.NDArray[Any]:
    """An array over the tensor's own memory where that is possible; bfloat16 as its bits in uint16."""
    tensor = tensor.contiguous().cpu()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def array_of(tensor: Tensor) -> npt.NDArray[Any]:
    """An array of its own; bfloat16 as its bits in uint16."""
    return bits_of(tensor).copy()


def tensor_of(array: npt.NDArray[np.generic], dtype: str) -> Tensor:
    """An array out of the object store as a tensor over the same, read-only memory.

    `dtype` = bfloat16 says that the array holds its bits as uint16.
    """
    with warnings.catch_warnings():  # nothing here writes to it
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor

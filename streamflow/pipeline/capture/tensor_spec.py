"""What tensors are like that code is made for."""

from dataclasses import dataclass
from math import prod
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor without its numbers."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        """Describe a tensor."""
        return cls(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)

    @property
    def can_carry_gradient(self) -> bool:
        """Whether gradients with respect to such a tensor exist."""
        return self.dtype.is_floating_point or self.dtype.is_complex

    @property
    def num_bytes(self) -> int:
        """Bytes of its numbers."""
        return prod(self.shape) * self.dtype.itemsize

    def empty(self) -> Tensor:
        """Return such a tensor, whatever it holds."""
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype)

    def zeros(self, *leading: int) -> Tensor:
        """Return a tensor (leading, ...) of such tensors in one piece."""
        return torch.zeros(*leading, *self.shape, dtype=self.dtype)

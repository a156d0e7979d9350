"""Whether trees are the same to the last bit."""

from typing import Any

import numpy as np
import torch


def are_same(one: Any, other: Any) -> bool:
    """Return whether two trees are the same to the last bit, types and signs included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(are_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        pairs = zip(one, other, strict=False)
        return len(one) == len(other) and all(are_same(*pair) for pair in pairs)
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and bits(one) == bits(other)
    if isinstance(one, np.ndarray):
        layout = (one.dtype, one.shape) == (other.dtype, other.shape)
        return layout and one.tobytes() == other.tobytes()
    if isinstance(one, float):
        return np.float64(one).tobytes() == np.float64(other).tobytes()
    return bool(one == other)


def bits(tensor: torch.Tensor) -> bytes:
    """Return the memory of a tensor in C order, whatever it holds."""
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()

"""Tensors inside tuples, lists, dicts and dataclasses: a sample's inputs, outputs and values."""

import threading
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from streamflow.pipeline.torch_private import pytree

_REGISTERING = threading.Lock()


def flatten(tree: Any) -> tuple[list[Any], pytree.TreeSpec]:
    """Return the leaves of ``tree`` in a fixed order, and its structure.

    A dataclass that holds tensors becomes known to torch as a structure like tuple and dict.
    """
    leaves, spec = pytree.tree_flatten(tree)
    records = {type(leaf) for leaf in leaves if is_dataclass(leaf) and _holds_tensors(leaf)}
    if not records:
        return leaves, spec
    with _REGISTERING:
        for record in records - pytree.SUPPORTED_NODES.keys():
            pytree.register_dataclass(record)
    return flatten(tree)


def _holds_tensors(leaf: Any) -> bool:
    if not is_dataclass(leaf):
        return isinstance(leaf, Tensor)
    inside = [getattr(leaf, field.name) for field in fields(leaf)]
    return any(_holds_tensors(part) for part in pytree.tree_leaves(inside))


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply ``function`` to every tensor of ``tree`` and keep everything else."""
    if isinstance(tree, Tensor):
        return function(tree)
    if type(tree) is tuple:
        return tuple(map_tensors(function, item) for item in tree)
    leaves, spec = flatten(tree)
    mapped = [function(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    return pytree.tree_unflatten(mapped, spec)


def tensors(tree: Any) -> list[Tensor]:
    """Return the tensors of ``tree`` in a fixed order."""
    if isinstance(tree, Tensor):
        return [tree]
    if type(tree) is tuple:
        return [tensor for item in tree for tensor in tensors(item)]
    return [leaf for leaf in flatten(tree)[0] if isinstance(leaf, Tensor)]


def floats(tree: Any) -> list[Tensor]:
    """Return the tensors of ``tree`` that can carry a gradient."""
    return [tensor for tensor in tensors(tree) if can_carry_gradient(tensor)]


def can_carry_gradient(tensor: Tensor) -> bool:
    """Say whether gradients with respect to ``tensor`` exist."""
    return tensor.is_floating_point() or tensor.is_complex()


def detach(tree: Any) -> Any:
    """Cut ``tree`` off its graph; the memory is shared."""
    return map_tensors(torch.Tensor.detach, tree)


def as_leaves(tree: Any) -> Any:
    """Make the tensors of ``tree`` leaves of a new graph; the memory is shared."""

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().requires_grad_(can_carry_gradient(tensor))

    return map_tensors(leaf, tree)


def shapes(tree: Any) -> Any:
    """Describe ``tree`` by the shapes and dtypes of its tensors; comparable and hashable."""
    if isinstance(tree, Tensor):
        return (tuple(tree.shape), tree.dtype)
    leaves, spec = flatten(tree)
    return (str(spec), tuple(shapes(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves))


def stack_samples(samples: list[Any]) -> Any:
    """Join samples of one structure along their leading dimension; the result is a copy."""
    if isinstance(samples[0], Tensor):
        return torch.cat(samples)
    leaves = [flatten(sample)[0] for sample in samples]
    spec = flatten(samples[0])[1]
    joined = [
        torch.cat(column) if isinstance(column[0], Tensor) else column[-1]
        for column in zip(*leaves, strict=True)
    ]
    return pytree.tree_unflatten(joined, spec)


def split_samples(tree: Any, count: int) -> list[Any]:
    """Cut every tensor of ``tree`` into ``count`` samples with a leading dimension of 1."""
    if count == 0:
        return []
    if isinstance(tree, Tensor):
        return list(torch.split(tree, 1))
    leaves, spec = flatten(tree)
    columns = [
        torch.split(leaf, 1) if isinstance(leaf, Tensor) else [leaf] * count for leaf in leaves
    ]
    return [pytree.tree_unflatten(list(row), spec) for row in zip(*columns, strict=True)]

"""Tensors inside tuples, lists and dicts: one sample's inputs, outputs and boundary values."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree  # the only flattener that knows named tuples and dicts


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply ``function`` to every tensor of ``tree`` and keep everything else."""
    if isinstance(tree, Tensor):
        return function(tree)
    if type(tree) is tuple:
        return tuple(map_tensors(function, item) for item in tree)
    return pytree.tree_map_only(Tensor, function, tree)


def tensors(tree: Any) -> list[Tensor]:
    """Return the tensors of ``tree`` in a fixed order."""
    if isinstance(tree, Tensor):
        return [tree]
    if type(tree) is tuple:
        return [tensor for item in tree for tensor in tensors(item)]
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


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
    leaves, spec = pytree.tree_flatten(tree)
    return (str(spec), tuple(shapes(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves))


def stack_samples(samples: list[Any]) -> Any:
    """Join samples of one structure along their leading dimension; the result is a copy."""
    if isinstance(samples[0], Tensor):
        return torch.cat(samples)
    leaves = [pytree.tree_flatten(sample)[0] for sample in samples]
    spec = pytree.tree_flatten(samples[0])[1]
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
    leaves, spec = pytree.tree_flatten(tree)
    columns = [
        torch.split(leaf, 1) if isinstance(leaf, Tensor) else [leaf] * count for leaf in leaves
    ]
    return [pytree.tree_unflatten(list(row), spec) for row in zip(*columns, strict=True)]

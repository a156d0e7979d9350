"""Torch's state dicts as the state trees of checkpoints, in which every key of a dict is text.

Torch has dicts with other keys where one would not look for them, such as the milestones of
``MultiStepLR``, a `Counter` of integers. Such a dict becomes ``{"$dict": [[key, value], ...]}``, a
counter ``{"$counter": ...}``. A parameter or buffer of a lazy module that has had no sample yet
becomes ``{"$lazy": [kind, dtype]}``. Everything else stays as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter, is_lazy

_TAGS: dict[str, Callable[[Any], Any]] = {
    "$dict": dict,
    "$counter": lambda pairs: Counter(dict(pairs)),
    "$lazy": lambda described: _lazy(*described),
}


def portable(tree: Any) -> Any:
    """Return a tree whose dicts are plain and have text as keys."""
    if isinstance(tree, dict):
        if all(isinstance(key, str) for key in tree) and not isinstance(tree, Counter):
            return {key: portable(value) for key, value in tree.items()}
        tag = "$counter" if isinstance(tree, Counter) else "$dict"
        return {tag: [[portable(key), portable(value)] for key, value in tree.items()]}
    if type(tree) in (list, tuple):
        return type(tree)(map(portable, tree))
    if isinstance(tree, torch.Tensor) and is_lazy(tree):
        kind = "parameter" if isinstance(tree, UninitializedParameter) else "buffer"
        return {"$lazy": [kind, str(tree.dtype).removeprefix("torch.")]}
    return tree


def _lazy(kind: str, dtype: str) -> torch.Tensor:
    made: Any = UninitializedParameter if kind == "parameter" else UninitializedBuffer
    tensor: torch.Tensor = made(dtype=getattr(torch, dtype))
    return tensor


def original(tree: Any) -> Any:
    """Return the tree that `portable` was given."""
    if isinstance(tree, dict):
        values = {key: original(value) for key, value in tree.items()}
        tag = next(iter(values)) if len(values) == 1 else ""
        return _TAGS[tag](values[tag]) if tag in _TAGS else values
    if type(tree) in (list, tuple):
        return type(tree)(map(original, tree))
    return tree

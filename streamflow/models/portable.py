"""Torch's state dicts as the state trees of checkpoints, in which every key of a dict is text.

Torch has dicts with other keys where one would not look for them, such as the milestones of
``MultiStepLR``, a `Counter` of integers. Such a dict becomes ``{"$dict": [[key, value], ...]}``, a
counter ``{"$counter": ...}``, and everything else stays as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

_TAGS: dict[str, Callable[[Any], Any]] = {
    "$dict": dict,
    "$counter": lambda pairs: Counter(dict(pairs)),
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
    return tree


def original(tree: Any) -> Any:
    """Return the tree that `portable` was given."""
    if isinstance(tree, dict):
        values = {key: original(value) for key, value in tree.items()}
        tag = next(iter(values)) if len(values) == 1 else ""
        return _TAGS[tag](values[tag]) if tag in _TAGS else values
    if type(tree) in (list, tuple):
        return type(tree)(map(original, tree))
    return tree

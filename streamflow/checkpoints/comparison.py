"""What differs between two checkpoints, and what one holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from streamflow.checkpoints.reading import Checkpoint
from streamflow.checkpoints.tensors import Header, kind_of
from streamflow.records import show_place


class Absent:
    """The type of `ABSENT`."""

    def __str__(self) -> str:
        return "nothing"


ABSENT: Final = Absent()
"""Stands for what one of two checkpoints does not have."""


@dataclass(frozen=True, slots=True)
class Change:
    """One part that differs.

    Attributes:
        path: The way to it: node, then keys.
        before: What the first checkpoint has, as text.
        after: What the other one has.
        max_difference: Between tensors of one shape, the largest over all elements.
    """

    path: str
    before: str
    after: str
    max_difference: float | None = None

    def __str__(self) -> str:
        if self.max_difference is not None:
            return f"{self.path}: {self.before}, at most {self.max_difference:g} apart"
        return f"{self.path}: {self.before} -> {self.after}"


@dataclass(frozen=True, slots=True)
class Differences:
    """What differs between two checkpoints.

    Attributes:
        positions: Where sources go on, and how many records they have read.
        states: What nodes have learned and keep.
        marks: How far sinks have written.
        num_same: Count of parts of states that are the same in both.
    """

    positions: tuple[Change, ...]
    states: tuple[Change, ...]
    marks: tuple[Change, ...]
    num_same: int


def compare(one: Checkpoint, other: Checkpoint) -> Differences:
    """Return what differs between two checkpoints; holds one node of each in memory at a time.

    Raises:
        CheckpointError: A file cannot be read.
    """
    states: list[Change | None] = []
    for node in {**one.manifest.states, **other.manifest.states}:
        states += compare_trees(node, *(_state(checkpoint, node) for checkpoint in (one, other)))
    positions = compare_trees("", _positions(one), _positions(other))
    marks = compare_trees("", one.manifest.marks, other.manifest.marks)
    return Differences(
        tuple(filter(None, positions)),
        tuple(filter(None, states)),
        tuple(filter(None, marks)),
        states.count(None),
    )


def _state(checkpoint: Checkpoint, node: str) -> dict[str, Any]:
    return checkpoint.state(node) if node in checkpoint.manifest.states else {}


def _positions(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return records and positions as a tree."""
    manifest = checkpoint.manifest
    tree: dict[str, Any] = {
        source: {"records": count} for source, count in manifest.records.items()
    }
    for source, positions in manifest.positions.items():
        named = {show_place(place): position for place, position in positions.items()}
        tree.setdefault(source, {})["position"] = named
    return tree


def compare_trees(path: str, one: Any, other: Any) -> Iterator[Change | None]:
    """Yield a change for each part that differs, None for each that is the same."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in {**one, **other}:
            pair = one.get(key, ABSENT), other.get(key, ABSENT)
            yield from compare_trees(_below(path, key), *pair)
    elif isinstance(one, list | tuple) and type(one) is type(other) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other, strict=True)):
            yield from compare_trees(_below(path, index), *pair)
    else:
        yield _compare(path, one, other)


def _below(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def outline(path: str, tree: Any) -> Iterator[tuple[str, Any]]:
    """Yield tensors, by their headers, and single values; all others of a list by their number."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from outline(_below(path, key), value)
    elif isinstance(tree, list | tuple):
        parts = [part for at, item in enumerate(tree) for part in outline(_below(path, at), item)]
        tensors = [part for part in parts if isinstance(part[1], Header)]
        yield from tensors
        if count := len(parts) - len(tensors):
            yield path, f"{count:,} value{'' if count == 1 else 's'}"
    else:
        yield path, tree


def _compare(path: str, before: Any, after: Any) -> Change | None:
    kinds = {kind_of(before), kind_of(after)}
    if kinds in ({"tensor"}, {"array"}) and before.shape == after.shape:
        found = _max_difference(before, after)
        return Change(path, show(before), show(after), found) if found else None
    if kinds.isdisjoint({"tensor", "array"}) and repr(before) == repr(after):
        return None
    return Change(path, show(before), show(after))


def show(value: Any) -> str:
    """Return a part of a state as text."""
    kind = kind_of(value)
    if kind in ("tensor", "array"):
        shape = ", ".join(map(str, value.shape))
        return f"{str(value.dtype).removeprefix('torch.')} ({shape})"
    if isinstance(value, Mapping | list | tuple):
        return f"a {type(value).__name__} of {len(value):,}"
    return str(value)


def _max_difference(before: Any, after: Any) -> float:
    """Return the largest distance of two elements; not a number against a number is infinite."""
    import numpy as np

    one, other = _numbers(before), _numbers(after)
    with np.errstate(invalid="ignore"):
        distance = np.abs(one - other)
    distance[(one == other) | (np.isnan(one) & np.isnan(other))] = 0
    distance[np.isnan(distance)] = np.inf
    return float(distance.max(initial=0))


def _numbers(value: Any) -> Any:
    """Return a tensor or an array as floats or complex numbers of numpy, one axis."""
    import numpy as np

    if kind_of(value) == "tensor":
        value = (value if value.is_complex() else value.double()).numpy()
    return np.atleast_1d(value).astype(np.result_type(value.dtype, np.float64)).ravel()

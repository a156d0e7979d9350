"""State trees as JSON and named tensors, without loss.

A tree is made of plain dicts with text as keys, lists, tuples, text, bytes, integers, floats, true,
false and none, numpy scalars, arrays and tensors. JSON holds most of it as it is; what it does not
have becomes a dict with a single key, the marker:

    {"$tuple": [...]}    {"$bytes": base64}    {"$float": its bits, if it is not finite}
    {"$int": hexadecimal, beyond 64 bits}      {"$scalar": [numpy dtype, value]}
    {"$tensor": name}    {"$array": [name, numpy dtype]}
    {"$dict": {...}}     around a dict of the state's own that has a key with a dollar sign in front

Names of tensors are their ways through the tree, ``pipeline.module.0.weight``.
"""

from __future__ import annotations

import math
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from struct import pack, unpack
from typing import Any, NoReturn, TypeAlias

from streamflow.checkpoints import tensors
from streamflow.errors import CheckpointError

Json: TypeAlias = Any
Location: TypeAlias = tuple[str | int, ...]
Load: TypeAlias = Callable[[str, str | None], Any]
"""Returns the tensor of a name, or the array of a name and a dtype."""

DEEPEST = 100
"""Levels that a tree may have; one that contains itself has more."""

RESERVED = "__metadata__"
"""Means something of its own in safetensors."""

PLAIN_INTEGERS = range(-(2**63), 2**64)


@dataclass(frozen=True, slots=True)
class EncodedTree:
    """A tree in two parts.

    Attributes:
        json: What JSON can hold of it.
        tensors: Its tensors and arrays by name, not copied.
    """

    json: Json
    tensors: Mapping[str, Any]


def encode(tree: Any, *, where: str) -> EncodedTree:
    """Return a tree as JSON and named tensors.

    Args:
        tree: The tree.
        where: Whose it is, for messages.

    Raises:
        CheckpointError: It holds something that a checkpoint cannot hold.
    """
    encoder = _Encoder(where)
    return EncodedTree(encoder.encode(tree, ()), encoder.tensors)


class _Encoder:
    """Encodes one tree, collecting its tensors."""

    def __init__(self, where: str) -> None:
        self.tensors: dict[str, Any] = {}
        self._where = where

    def encode(self, value: Any, location: Location) -> Json:
        kind = type(value)
        if value is None or kind is str or kind is bool:
            return value
        if kind is int:
            return value if value in PLAIN_INTEGERS else {"$int": hex(value)}
        if kind is float:
            return value if math.isfinite(value) else {"$float": pack(">d", value).hex()}
        if len(location) > DEEPEST:
            self._refuse(location[:3], f"at most {DEEPEST} levels", "more", "flatten it")
        if kind is dict:
            return self._encode_dict(value, location)
        if kind is list:
            return self._encode_items(value, location)
        if kind is tuple:
            return {"$tuple": self._encode_items(value, location)}
        if kind is bytes:
            return {"$bytes": b64encode(value).decode()}
        return self._encode_numbers(value, location)

    def _encode_items(self, items: list[Any] | tuple[Any, ...], location: Location) -> list[Json]:
        return [self.encode(item, (*location, index)) for index, item in enumerate(items)]

    def _encode_dict(self, tree: dict[Any, Any], location: Location) -> dict[str, Json]:
        for key in tree:
            if type(key) is not str:
                found = f"{key!r}, a {type(key).__name__}"
                self._refuse(location, "text as keys", found, "keep a list of pairs")
        encoded = {key: self.encode(value, (*location, key)) for key, value in tree.items()}
        return {"$dict": encoded} if any(key.startswith("$") for key in tree) else encoded

    def _encode_numbers(self, value: Any, location: Location) -> Json:
        """Encode what is of numpy or torch, and refuse all else."""
        kind = tensors.kind_of(value)
        if kind is None:
            expected = "numbers, text, bytes, lists, tuples, dicts, arrays or tensors"
            found = f"a {type(value).__name__}"
            self._refuse(location, expected, found, "return plain data from state()")
        if objection := tensors.objection(value, kind):
            self._refuse(location, *objection)
        if kind == "scalar":
            return {"$scalar": [value.dtype.str, self.encode(value.item(), location)]}
        name = self._name(location)
        self.tensors[name] = value
        return {"$tensor": name} if kind == "tensor" else {"$array": [name, value.dtype.str]}

    def _name(self, location: Location) -> str:
        path = ".".join(map(str, location))
        name = path = path.encode("utf-8", "backslashreplace").decode()
        number = 1
        while name in self.tensors or name == RESERVED:
            number += 1
            name = f"{path}#{number}"
        return name

    def _refuse(self, location: Location, expected: str, found: str, cure: str) -> NoReturn:
        path = ".".join(map(str, (self._where, *location)))
        message = f"{path}: expected {expected} in the state, found {found}; {cure}"
        raise CheckpointError(message)


def decode(json: Json, load: Load) -> Any:
    """Return the tree that `encode` was given, with tensors and arrays from ``load``."""
    if isinstance(json, list):
        return [decode(item, load) for item in json]
    if not isinstance(json, dict):
        return json
    marker = next(iter(json), "")
    if marker.startswith("$"):
        return _decode_marked(marker, json[marker], load)
    return {key: decode(value, load) for key, value in json.items()}


def _decode_marked(marker: str, content: Json, load: Load) -> Any:
    match marker:
        case "$tuple":
            return tuple(decode(item, load) for item in content)
        case "$dict":
            return {key: decode(value, load) for key, value in content.items()}
        case "$bytes":
            return b64decode(content)
        case "$float":
            return unpack(">d", bytes.fromhex(content))[0]
        case "$int":
            return int(content, 16)
        case "$scalar":
            return tensors.scalar(content[0], decode(content[1], load))
        case "$tensor":
            return load(content, None)
        case "$array":
            return load(*content)
    message = f"expected a marker that is known, found {marker}; read it with a newer streamflow"
    raise CheckpointError(message)


def without_tensors(name: str, _dtype: str | None) -> Any:
    """Load nothing: for trees that have no tensors.

    Raises:
        CheckpointError: Always, as this one has.
    """
    message = f"expected no tensor, found {name}; the checkpoint was changed"
    raise CheckpointError(message)

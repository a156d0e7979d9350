"""States as a checkpoint holds them: JSON, and beside it tensors and arrays."""

import json
from typing import Any, NamedTuple

import numpy as np
import torch


class Packed(NamedTuple):
    """A state without anything that a checkpoint cannot hold; equal if equal to the last bit."""

    text: str
    tensors: tuple[tuple[str, bytes], ...]


def pack(state: dict[str, Any]) -> Packed:
    """Return a state packed; raise TypeError if it holds anything that no state may hold."""
    tensors: list[tuple[str, bytes]] = []

    def plain(tree: Any, where: str) -> Any:
        kind = type(tree)
        if kind is dict and all(type(key) is str for key in tree):
            return {"d": {key: plain(value, f"{where}.{key}") for key, value in tree.items()}}
        if kind in (list, tuple):
            parts = [plain(part, f"{where}[{i}]") for i, part in enumerate(tree)]
            return parts if kind is list else {"t": parts}
        if tree is None or kind in (bool, int, float, str):
            return tree
        if kind is bytes:
            return {"b": list(tree)}
        if kind in (np.ndarray, torch.Tensor):
            array = tree.detach().numpy() if kind is torch.Tensor else tree
            assert array.dtype.kind in "biuf", f"{where} has the dtype {array.dtype}"
            name = json.dumps([kind.__name__, array.dtype.str, array.shape])
            tensors.append((name, array.tobytes()))
            return {"a": len(tensors) - 1}
        message = f"state{where} is {tree!r}, a {kind}"
        raise TypeError(message)

    return Packed(json.dumps(plain(state, "")), tuple(tensors))


def unpack(packed: Packed) -> dict[str, Any]:
    """Return the state, with nothing in common with the one that was packed."""

    def tensor(index: int) -> Any:
        name, content = packed.tensors[index]
        kind, dtype, shape = json.loads(name)
        array = np.frombuffer(content, dtype).reshape(shape).copy()
        return torch.from_numpy(array) if kind == "Tensor" else array

    def tree(plain: Any) -> Any:
        if isinstance(plain, list):
            return list(map(tree, plain))
        if not isinstance(plain, dict):
            return plain
        ((mark, content),) = plain.items()
        if mark == "d":
            return {key: tree(value) for key, value in content.items()}
        if mark == "t":
            return tuple(map(tree, content))
        return bytes(content) if mark == "b" else tensor(content)

    found: dict[str, Any] = tree(json.loads(packed.text))
    return found

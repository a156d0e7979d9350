"""What every operator must do to go on from a checkpoint, as a check that raises AssertionError."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from streamflow.conformance import make_batch
from streamflow.nodes import Context, Operator, Processed, Processor

Fallback: TypeAlias = Callable[[Any, str], Any]
"""Packs a value that no state may hold, or raises; gets the value and where it stands."""


def check_operator(
    make: Callable[[], Operator],
    values: Sequence[Any],
    *,
    cuts: Iterable[int] | None = None,
    folder: Path | None = None,
) -> None:
    """Check that an operator goes on from its state as if it had never stopped.

    Its state is taken after some records, written as a checkpoint writes it, read, and restored in
    a processor that was just opened. Both then take the rest of the records: their outputs, the
    records they reject and their states at the end have to be the same to the last bit.

    Args:
        make: Declares the operator, each time anew.
        values: What it is given; a `Record` also brings its key, timestamp and headers. Some that
            are rejected, or left out, make the check better.
        cuts: After how many records to take the state; by default after any number of them.
        folder: Where relative paths start.
    """
    context = Context("operator", folder or Path())
    for cut in range(len(values) + 1) if cuts is None else cuts:
        _check_cut(make, context, values, cut)


def _check_cut(
    make: Callable[[], Operator], context: Context, values: Sequence[Any], cut: int
) -> None:
    where = f"after {cut} of {len(values)} records: expected"
    with make().open(context) as processor:
        _process(processor, values[:cut], 0)
        state = processor.state()
        packed = _pack_state(state)
        again = _pack_state(processor.state())
        assert again == packed, f"{where} an equal state when asked again, found {again}"
        whole = _go_on(processor, values, cut)
        kept = _pack_state(state)
        assert kept == packed, f"{where} a copy, found a state that changes as records go by"
    with make().open(context) as processor:
        unpacked = _unpack(json.loads(packed))
        processor.restore(unpacked)
        again = _pack_state(processor.state())
        assert again == packed, f"{where} the restored state, found another one: {again}"
        resumed = _go_on(processor, values, cut)
        kept = _pack_state(unpacked)
        assert kept == packed, f"{where} restore to leave the state alone, found it changed"
    for expected, found in zip(whole, resumed, strict=True):
        assert found == expected, f"{where} {expected}, found {found} with the state restored"


def _process(processor: Processor, values: Sequence[Any], start: int) -> list[str]:
    return _shown(processor.process(make_batch(values, start))) if values else []


def _go_on(processor: Processor, values: Sequence[Any], start: int) -> list[str]:
    """Return what becomes of the values from ``start``, the state after them, and what follows."""
    outputs = _process(processor, values[start:], start)
    return [*outputs, _pack_state(processor.state()), *_shown(processor.end())]


def _shown(processed: Processed) -> list[str]:
    """Return output and rejected records as text that tells every bit."""
    rejected = processed.rejected
    return [
        json.dumps(_pack([*map(_fields, batch.records())] if batch else None, "", _by_repr))
        for batch in (processed.batch, rejected and rejected.batch)
    ] + [repr(rejected and list(rejected.causes))]


def _fields(record: Any) -> list[Any]:
    return [record.value, record.key, record.timestamp_ms, record.headers, record.position]


def _pack_state(state: Any) -> str:
    assert type(state) is dict, f"expected state() to return a dict, found {state!r}"
    return json.dumps(_pack(state, "state", _refuse))


def _refuse(value: Any, where: str) -> Any:
    message = (
        f"{where}: expected a dict with text as keys, list, tuple, str, int, float, bool, None, "
        f"bytes, torch.Tensor or numpy.ndarray, found {value!r} of {type(value)}"
    )
    raise AssertionError(message)


def _by_repr(value: Any, where: str) -> Any:
    return {"repr": repr(value)}


def _pack(tree: Any, where: str, fallback: Fallback) -> Any:
    """Return a tree as JSON holds it, from which `_unpack` makes it anew."""
    kind = type(tree)
    if tree is None or kind in (bool, int, str) or (kind is float and math.isfinite(tree)):
        return tree
    if kind is dict and all(type(key) is str for key in tree):
        items = ((key, _pack(value, f"{where}.{key}", fallback)) for key, value in tree.items())
        return {"dict": dict(items)}
    if kind in (list, tuple):
        parts = [_pack(part, f"{where}[{i}]", fallback) for i, part in enumerate(tree)]
        return parts if kind is list else {"tuple": parts}
    if kind is float:
        return {"float": repr(tree)}
    if kind is bytes:
        return {"bytes": tree.hex()}
    if kind is np.ndarray and not tree.dtype.hasobject:
        return {"array": [tree.dtype.str, list(tree.shape), tree.tobytes().hex()]}
    torch = sys.modules.get("torch")  # without it there can be no tensor
    if torch and kind is torch.Tensor:
        content = tree.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        dtype = str(tree.dtype).removeprefix("torch.")
        return {"tensor": [dtype, list(tree.shape), content.tobytes().hex()]}
    return fallback(tree, where)


def _unpack(packed: Any) -> Any:
    if type(packed) is list:
        return list(map(_unpack, packed))
    if type(packed) is not dict:
        return packed
    ((kind, content),) = packed.items()
    return _UNPACK[kind](content)


def _unpack_array(content: list[Any]) -> Any:
    dtype, shape, data = content
    return np.frombuffer(bytes.fromhex(data), dtype).reshape(shape).copy()


def _unpack_tensor(content: list[Any]) -> Any:
    torch = sys.modules["torch"]
    dtype, shape, data = content
    tensor = torch.empty(shape, dtype=getattr(torch, dtype))
    own_bytes = torch.from_numpy(np.frombuffer(bytes.fromhex(data), np.uint8).copy())
    tensor.reshape(-1).view(torch.uint8).copy_(own_bytes)
    return tensor


_UNPACK: dict[str, Callable[[Any], Any]] = {
    "dict": lambda items: {key: _unpack(value) for key, value in items.items()},
    "tuple": lambda parts: tuple(map(_unpack, parts)),
    "float": float,
    "bytes": bytes.fromhex,
    "array": _unpack_array,
    "tensor": _unpack_tensor,
}

"""Single values as JSON and as msgpack, arrays included."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, Final

import msgpack  # type: ignore[import-untyped]  # it ships no types
import orjson

TENSOR_EXTENSION: Final = 1
"""The msgpack extension type of arrays."""

_TENSOR_DTYPES: Final = frozenset(
    {"|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8"}
    | {"<f2", "<f4", "<f8", "<c8", "<c16"}
)

MOST_CONTAINERS: Final = 2**20
"""Lists and mappings in one value. An empty one takes one byte of a payload, and 72 of memory."""

_JSON_OPTIONS: Final = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_PASSTHROUGH_DATACLASS

_LINE_BREAK: Final = orjson.Fragment(b"\n")
"""What stands nowhere else in compact JSON, as within text it is escaped."""

_KEYS: Final = frozenset({str, bytes})

_FLAT: Final = frozenset({str, bytes, int, float, bool, type(None)})
"""Types of values that have no keys within."""

_MOST_EMPTY_ROWS: Final = 2**16


def load_json(payload: bytes) -> Any:
    """Return the one value that ``payload`` holds.

    Raises:
        ValueError: It is none, or holds more than `MOST_CONTAINERS` lists and objects.
    """
    if len(payload) > MOST_CONTAINERS:
        _check_containers(payload.count(b"[") + payload.count(b"{"))
    return orjson.loads(payload)


def _check_containers(count: int) -> None:
    if count > MOST_CONTAINERS:
        message = f"more than {MOST_CONTAINERS:,} lists and mappings"
        raise ValueError(message)


def dump_json(value: Any) -> bytes:
    """Return ``value`` as JSON; arrays become lists, bytes base64.

    Raises:
        ValueError: It holds a number that is not finite.
        TypeError: It holds something else that JSON has no notation for.
    """
    payload = orjson.dumps(value, default=_json_equivalent, option=_JSON_OPTIONS)
    _check_finite(payload, value)
    return payload


def dump_json_each(values: Sequence[Any]) -> list[bytes]:
    """Return each of ``values`` as `dump_json` does, all in one call, which costs most of the time.

    Raises:
        ValueError: As `dump_json` does for any of them.
        TypeError: Likewise.
    """
    if not values:
        return []
    items: list[Any] = [_LINE_BREAK] * (2 * len(values) - 1)
    items[::2] = values
    text = orjson.dumps(items, default=_json_equivalent, option=_JSON_OPTIONS)
    payloads = text[1:-1].split(b",\n,")
    if b"null" in text:
        for payload, value in zip(payloads, values, strict=True):
            _check_finite(payload, value)
    return payloads


def _check_finite(payload: bytes, value: Any) -> None:
    if b"null" in payload and _has_non_finite(value):
        message = "a number that is not finite"
        raise ValueError(message)


def _json_equivalent(value: Any) -> Any:
    """Return what stands in JSON for a value that orjson does not know."""
    if isinstance(value, bytes | bytearray | memoryview):
        return b64encode(value).decode()
    if hasattr(value, "__array__"):
        return _as_array(value).tolist()
    message = f"no JSON for {type(value).__name__}"
    raise TypeError(message)


def _has_non_finite(value: Any) -> bool:
    if isinstance(value, float):
        return value - value != 0  # true of infinities and of NaN
    if isinstance(value, Mapping):
        return any(map(_has_non_finite, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_non_finite, value))
    return hasattr(value, "__array__") and _has_non_finite(_as_array(value).tolist())


def load_msgpack(payload: bytes) -> Any:
    """Return the one value that ``payload`` holds; may raise any exception if it does not.

    Raises:
        ValueError: It is cut off, damaged, or followed by more, or holds more than
            `MOST_CONTAINERS` lists and mappings.
    """
    if len(payload) <= MOST_CONTAINERS:
        return _unpack(payload)
    count = 0

    def counted(container: Any) -> Any:
        nonlocal count
        count += 1
        _check_containers(count)
        return container

    return _unpack(payload, list_hook=counted, object_hook=counted)


def _unpack(payload: bytes, **hooks: Any) -> Any:
    # Lengths are bounded by the payload's and map keys are text, so hostile input stays harmless.
    try:
        return msgpack.unpackb(payload, timestamp=3, ext_hook=_load_extension, **hooks)
    except msgpack.ExtraData as error:
        message = f"{len(error.extra)} bytes after the value"
        raise ValueError(message) from error
    except msgpack.UnpackException as error:
        message = f"{str(error) or type(error).__name__}"
        raise ValueError(message) from error


def dump_msgpack(value: Any) -> bytes:
    """Return ``value`` as msgpack; may raise any exception if it holds what msgpack does not.

    Raises:
        TypeError: It holds a mapping whose keys are no text, which `load_msgpack` would refuse.
    """
    payload: bytes = msgpack.packb(value, datetime=True, default=_msgpack_equivalent)
    _check_keys(value)  # after packing, which bounds how deep it nests
    return payload


def _check_keys(value: Any) -> None:
    if isinstance(value, dict):
        if not _KEYS.issuperset(map(type, value)):
            for key in value:
                if not isinstance(key, str | bytes):
                    message = f"the key {key!r} of a mapping, which is no text; make it text"
                    raise TypeError(message)
        value = value.values()
    elif not isinstance(value, list | tuple):
        return
    if not _FLAT.issuperset(map(type, value)):
        for item in value:
            _check_keys(item)


def _load_extension(code: int, data: bytes) -> Any:
    if code != TENSOR_EXTENSION:
        return msgpack.ExtType(code, data)
    import numpy as np  # only streams that carry arrays need it

    dtype, shape, elements = msgpack.unpackb(data)
    if dtype not in _TENSOR_DTYPES:
        message = f"an array of the unknown dtype {dtype!r}"
        raise ValueError(message)
    # An empty array may have any number of rows without a byte in them, but not as lists.
    num_rows = math.prod(takewhile(bool, shape))
    if min(shape, default=0) < 0 or num_rows > max(len(elements), _MOST_EMPTY_ROWS):
        message = f"an array of the impossible shape {shape}"
        raise ValueError(message)
    return np.frombuffer(elements, dtype).reshape(shape).copy()


def _msgpack_equivalent(value: Any) -> Any:
    """Return what stands in msgpack for a value that it does not know."""
    if not hasattr(value, "__array__"):
        message = f"no msgpack for {type(value).__name__}"
        raise TypeError(message)
    array = _as_array(value)
    if array.ndim == 0:
        return array.item()
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    if array.dtype.str not in _TENSOR_DTYPES:
        return array.tolist()
    data = msgpack.packb((array.dtype.str, array.shape, array.tobytes()))
    return msgpack.ExtType(TENSOR_EXTENSION, data)


def _as_array(value: Any) -> Any:
    import numpy as np  # the value is an array, or makes one of itself

    return np.asarray(value)

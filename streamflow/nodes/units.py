"""Spans of time and amounts of memory as people write them: ``90s``, ``1.5h``, ``16MiB``."""

from __future__ import annotations

import re
from typing import Annotated, Final, TypeAlias

from pydantic import BeforeValidator, Field, WithJsonSchema

_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d)")
_BYTES: Final = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9} | {
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")


def read_duration(value: object) -> object:
    """Return the seconds that a text such as ``90s`` means; all but text as it is.

    Raises:
        ValueError: It means none.
    """
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value.strip())
    if match is None:
        message = "expected a span of time; write one with a unit of ms, s, m, h or d, as in 90s"
        raise ValueError(message)
    return float(match[1]) * _SECONDS[match[2]]


_DURATION_SCHEMA: Final = {
    "anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": _DURATION.pattern}]
}

DurationField: TypeAlias = Annotated[
    float,
    BeforeValidator(read_duration),
    Field(ge=0, lt=1e10, allow_inf_nan=False),
    WithJsonSchema(_DURATION_SCHEMA),
]
"""A field that holds seconds, zero or more."""

SpanField: TypeAlias = Annotated[DurationField, Field(ge=0.001)]
"""A field that holds seconds, a thousandth at least."""


def milliseconds(seconds: float) -> int:
    """Return seconds as whole milliseconds."""
    return round(seconds * 1000)


def read_size(value: object) -> object:
    """Return the bytes that a text such as ``16MiB`` means; all but text as it is.

    Raises:
        ValueError: It means none.
    """
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    units = {unit.casefold(): factor for unit, factor in _BYTES.items()}
    if match is None or match[2].casefold() not in units:
        known = ", ".join(filter(None, _BYTES))
        message = f"expected a number of bytes; write one with a unit of {known}, as in 16MiB"
        raise ValueError(message)
    return int(float(match[1]) * units[match[2].casefold()])


_SIZE_SCHEMA: Final = {
    "anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": _SIZE.pattern}]
}

SizeField: TypeAlias = Annotated[
    int, BeforeValidator(read_size), Field(ge=1), WithJsonSchema(_SIZE_SCHEMA)
]
"""A field that holds bytes, at least one."""

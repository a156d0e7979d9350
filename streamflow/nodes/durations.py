"""Spans of time as people write them: ``90s``, ``1.5h``."""

from __future__ import annotations

import re
from typing import Annotated, Final, TypeAlias

from pydantic import BeforeValidator, Field, WithJsonSchema

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d)")


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
    return float(match[1]) * _UNITS[match[2]]


_SCHEMA: Final = {
    "anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": _DURATION.pattern}]
}

DurationField: TypeAlias = Annotated[
    float,
    BeforeValidator(read_duration),
    Field(ge=0, lt=1e10, allow_inf_nan=False),
    WithJsonSchema(_SCHEMA),
]
"""A field that holds seconds, zero or more."""

SpanField: TypeAlias = Annotated[DurationField, Field(ge=0.001)]
"""A field that holds seconds, a thousandth at least."""


def milliseconds(seconds: float) -> int:
    """Return seconds as whole milliseconds."""
    return round(seconds * 1000)

"""Where a topic is begun: at one of its ends, or at a time."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BeforeValidator, WithJsonSchema

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_EXPECTED: Final = (
    "expected earliest, latest, or a time with its offset from UTC, "
    "found {}; write a time as 2026-01-31T08:00:00Z, or as seconds since 1970"
)


def _read(value: Any) -> Any:
    if value in ("earliest", "latest"):
        return value
    found = value
    try:
        if isinstance(value, str):
            found = _of_text(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found = _EPOCH + timedelta(seconds=value)
    except (ValueError, OverflowError):
        found = None
    if not isinstance(found, datetime) or found.tzinfo is None or found < _EPOCH:
        message = _EXPECTED.format(value)
        raise ValueError(message)
    return found


def _of_text(text: str) -> datetime:
    try:
        seconds = float(text)
    except ValueError:
        return datetime.fromisoformat(text)
    return _EPOCH + timedelta(seconds=seconds)


Start: TypeAlias = Annotated[
    Literal["earliest", "latest"] | datetime,
    BeforeValidator(_read),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": ["earliest", "latest"]},
                {"type": "string", "pattern": "^[0-9]"},
                {"type": "number"},
            ]
        }
    ),
]
"""A field for it; a time is a `datetime` that knows its offset from UTC."""


def milliseconds(time: datetime) -> int:
    """Return the first whole millisecond since 1970 that is not before ``time``."""
    return math.ceil((time - _EPOCH) / timedelta(milliseconds=1))

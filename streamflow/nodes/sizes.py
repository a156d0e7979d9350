"""Amounts of memory as people write them: ``16MiB``."""

from __future__ import annotations

import re
from typing import Annotated, Final, TypeAlias

from pydantic import BeforeValidator, Field, WithJsonSchema

_UNITS: Final = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9} | {
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")


def read_size(value: object) -> object:
    """Return the bytes that a text such as ``16MiB`` means; all but text as it is.

    Raises:
        ValueError: It means none.
    """
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    units = {unit.casefold(): factor for unit, factor in _UNITS.items()}
    if match is None or match[2].casefold() not in units:
        known = ", ".join(filter(None, _UNITS))
        message = f"expected a number of bytes; write one with a unit of {known}, as in 16MiB"
        raise ValueError(message)
    return int(float(match[1]) * units[match[2].casefold()])


_SCHEMA: Final = {
    "anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": _SIZE.pattern}]
}

SizeField: TypeAlias = Annotated[
    int, BeforeValidator(read_size), Field(ge=1), WithJsonSchema(_SCHEMA)
]
"""A field that holds bytes, at least one."""

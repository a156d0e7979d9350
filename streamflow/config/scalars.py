"""What a YAML 1.2 scalar without quotes means (the core schema, chapter 10.3)."""

from __future__ import annotations

import re
from typing import TypeAlias

Scalar: TypeAlias = str | int | float | bool | None

WORDS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
INTEGER = re.compile(r"[-+]?[0-9]+", re.ASCII)
OCTAL = re.compile(r"0o[0-7]+")
HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
INFINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

LONGEST = 400
"""Longer runs of digits are text; Python refuses to read them as integers."""


def resolve(text: str) -> Scalar:
    """Return the value that ``text`` means if it stands without quotes."""
    if text in WORDS:
        return WORDS[text]
    if len(text) > LONGEST:
        return text
    if INTEGER.fullmatch(text):
        return int(text)
    if OCTAL.fullmatch(text):
        return int(text[2:], 8)
    if HEXADECIMAL.fullmatch(text):
        return int(text[2:], 16)
    if NUMBER.fullmatch(text):
        return float(text)
    if match := INFINITE.fullmatch(text):
        return float("nan" if match[3] else f"{match[1]}inf")
    return text

"""Text cells: which values they mean, and how values are written as cells.

What a cell means depends on its own text alone, never on its neighbours: results must not depend
on how a stream is cut into batches.
"""

from __future__ import annotations

import csv
import math
import re
from base64 import b64encode
from collections.abc import Iterable, Sequence
from typing import Any, Final

import orjson

from streamflow.codecs.values import dump_json

_INTEGER: Final = re.compile(r"[+-]?[0-9]+", re.ASCII)

_SHAPES: Final = bytes.maketrans(
    bytes(range(256)),
    bytes(
        ord("0" if c in b"0123456789" else "," if c in b",\n+-" else "." if c in b".eE" else "?")
        for c in range(256)
    ),
)
"""Digits, what they begin with, and what goes on with a number; nothing else is in a plain one."""

_LONG_INTEGER: Final = b"," + 19 * b"0"
_LONG_FRACTION: Final = b"." + 300 * b"0"

_LONGEST: Final = 4000
"""Of an integer's text; Python refuses to read or write one that is a little longer."""

_LARGEST: Final = 10**_LONGEST


def read_cell(text: str) -> int | float | str | None:
    """Return what a cell means: nothing if it is empty, a number if it is one, else its text.

    A number is an optional sign and decimal digits, with a point or an exponent or without; spaces
    around it do not count. Words such as ``nan``, numbers too large for a float or of thousands of
    digits, and digits grouped by underscores stay text.
    """
    if not text:
        return None
    if len(text) > _LONGEST:
        return text
    try:
        number = float(text)
    except ValueError:
        return text
    if not math.isfinite(number) or "_" in text or not text.isascii():
        return text
    return int(text) if _INTEGER.fullmatch(text.strip()) else number


def read_column(cells: Sequence[str]) -> list[Any]:
    """Return what each cell means, as `read_cell` says, in less time where all are numbers."""
    text = ",".join(cells).encode()
    numbers: list[Any] | None = _load(b"[%b]" % text) if _is_plain(text) else None
    if numbers is not None and len(numbers) == len(cells):  # not so if one has a comma in it
        return numbers
    meanings = {cell: read_cell(cell) for cell in set(cells)}
    return [meanings[cell] for cell in cells]


def read_numbers(
    payloads: Sequence[bytes], *, num_fields: int, delimiter: str, quotechar: str
) -> list[list[Any]] | None:
    """Return what the cells of rows mean, by column; None if any is not a number written plainly.

    It is what `read_rows` and `read_cell` say, in much less time: all are one array in JSON.
    """
    text = b"\n".join(payloads).replace(b"\r\n", b"\n").removesuffix(b"\r")
    has_text = quotechar.encode() in text or (delimiter != "," and b"," in text)
    if has_text or text.count(b"\n") != len(payloads) - 1:  # a payload is not one line
        return None
    text = text.replace(delimiter.encode(), b",")
    if not _is_plain(text):
        return None
    rows: list[list[Any]] | None = _load(b"[[%b]]" % text.replace(b"\n", b"],["))
    if rows is None or not {num_fields}.issuperset(map(len, rows)):
        return None
    return list(map(list, zip(*rows, strict=True)))


def _is_plain(text: bytes) -> bool:
    """Return whether cells may be read as JSON: what is valid there means the same there.

    That is so of numbers whose integers have 64 bits and that `read_cell` takes for no text.
    """
    shape = (b"," + text).translate(_SHAPES)
    return not (b"?" in shape or _LONG_INTEGER in shape or _LONG_FRACTION in shape)


def _load(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:  # such as 007, or no number at all
        return None


def write_cell(value: Any) -> str | int | float | None:
    """Return what stands in a cell for ``value``: text as it is, all else as in JSON.

    Raises:
        ValueError: The value has no such notation.
        TypeError: Likewise.
    """
    if value is None or (type(value) is float and math.isfinite(value)):
        return value
    if type(value) is int:
        if abs(value) >= _LARGEST:
            message = f"an integer of more than {_LONGEST} digits"
            raise ValueError(message)
        return value
    if isinstance(value, str):
        value.encode()  # raises if it holds half of a surrogate pair
        return value
    if isinstance(value, bytes):
        return b64encode(value).decode()
    text = dump_json(value).decode()
    return text[1:-1] if text.startswith('"') else text


def read_rows(
    texts: Iterable[str], *, num_fields: int, delimiter: str, quotechar: str
) -> list[list[str]]:
    """Return the cells of each row, given as one text each.

    Raises:
        ValueError: One of them is not a row, or has another number of fields.
    """
    lines = [*texts, ""]  # a quote still open swallows what follows, so that a row is missing
    try:
        rows = list(csv.reader(lines, delimiter=delimiter, quotechar=quotechar))
    except csv.Error as error:
        raise ValueError(str(error)) from error
    if len(rows) != len(lines):
        message = "a quote that is not closed"
        raise ValueError(message)
    rows.pop()
    for row in rows:
        if len(row) != num_fields:
            message = f"{len(row)} fields"
            raise ValueError(message)
    return rows


def write_rows(
    rows: Iterable[Iterable[str | int | float | None]], *, delimiter: str, quotechar: str
) -> list[bytes]:
    """Return each row as one payload, without a line break at its end."""
    # The writer returns what its file's write() does, and quotes the line breaks it is told of.
    writer = csv.writer(_Echo, delimiter=delimiter, quotechar=quotechar, lineterminator="\r\n")
    return [writer.writerow(row)[:-2].encode() for row in rows]


class _Echo:
    """The least that csv.writer takes for a file."""

    @staticmethod
    def write(text: str) -> str:
        """Return ``text``."""
        return text

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

from streamflow.encodings import dump_json

_INTEGER: Final = re.compile(r"[+-]?[0-9]+", re.ASCII)
_MOST_DIGITS: Final = 300
"""Of a number that is surely finite as a float and not too long for int()."""

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
    is_plain = not "".join(cells).strip("0123456789.+-")
    if is_plain and max(map(len, cells), default=0) < _MOST_DIGITS:
        try:
            return [float(cell) if "." in cell else int(cell) for cell in cells]
        except ValueError:  # an empty cell, a date, an address
            return list(map(read_cell, cells))
    return list(map(read_cell, cells))


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

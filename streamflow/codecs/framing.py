"""Framing: where one record ends and the next begins in the bytes of a file.

A splitter is fed a file's bytes as they come and gives back whole payloads. It does no I/O and
never decodes, so a payload that turns out to be bad still has its original bytes.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import pairwise, repeat
from operator import contains
from typing import Final, Protocol

import msgpack  # type: ignore[import-untyped]  # it ships no types

MAX_PAYLOAD_BYTES: Final = 64 * 2**20
"""A payload longer than this is damage, and would only be gathered until the memory is full."""

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class Splitter(Protocol):
    """Cuts a run of bytes into payloads."""

    @property
    def rest(self) -> bytes:
        """What was fed since the last payload ended; `end` makes payloads of it."""
        ...

    def split(self, data: bytes) -> list[bytes]:
        """Return the payloads that ``data`` completes, in order.

        Raises:
            ValueError: What follows cannot be cut; payloads returned so far are fine.
        """
        ...

    def end(self) -> list[bytes]:
        """Return what is left at the end, whole or not."""
        ...


class LineSplitter:
    """A payload is a line; a carriage return before its end is left to the codec.

    Args:
        is_text: Whether a byte order mark at the start and empty lines are left out.
    """

    def __init__(self, *, is_text: bool = True) -> None:
        self._is_text = is_text
        self._is_first = True
        self._parts: list[bytes] = []
        self._size = 0

    @property
    def rest(self) -> bytes:
        """The line that is not ended."""
        return b"".join(self._parts)

    def split(self, data: bytes) -> list[bytes]:
        """Return the lines that ``data`` completes."""
        if b"\n" not in data:
            self._parts.append(data)
            self._size += len(data)
            check_payload_size(self._size)
            return []
        lines = b"".join([*self._parts, data]).split(b"\n")
        self._parts = [lines.pop()]
        self._size = len(self._parts[0])
        return self._clean(lines)

    def end(self) -> list[bytes]:
        """Return the last line if no line break ends it."""
        rest = self.rest
        self._parts = []
        return self._clean([rest]) if rest else []

    def _clean(self, lines: list[bytes]) -> list[bytes]:
        if not self._is_text:
            return lines
        if self._is_first:
            self._is_first = False
            lines[0] = lines[0].removeprefix(_BYTE_ORDER_MARK)
        return _without_empty(lines)


class CsvSplitter:
    """A payload is a row: a line, or several where a quoted field holds line breaks.

    A quote that is never closed, or not within what the csv module takes as one field, spoils only
    the line that opens it.
    """

    def __init__(self, *, delimiter: str, quotechar: str) -> None:
        self._quote = quotechar.encode()
        self._quotes = _Quotes(delimiter, quotechar)
        self._lines = LineSplitter(is_text=False)
        self._is_first = True
        self._open: list[bytes] = []  # of the row that is not ended
        self._open_bytes = 0
        self._field_size = 0  # of the field that is not ended

    @property
    def rest(self) -> bytes:
        """The row that is not ended."""
        return b"\n".join([*self._open, self._lines.rest])

    def split(self, data: bytes) -> list[bytes]:
        """Return the rows that ``data`` completes."""
        check_payload_size(self._open_bytes)
        return self._rows(self._lines.split(data))

    def end(self) -> list[bytes]:
        """Return the rows that the end of the file completes."""
        rows = self._rows(self._lines.end())
        rest, self._open = self._open, []
        return rows + _without_empty(rest)

    def _rows(self, lines: list[bytes]) -> list[bytes]:
        if self._is_first and lines:
            self._is_first = False
            lines[0] = lines[0].removeprefix(_BYTE_ORDER_MARK)
        if self._open or any(map(contains, lines, repeat(self._quote))):
            lines = self._joined(lines)
        return _without_empty(lines)

    def _joined(self, lines: list[bytes]) -> list[bytes]:
        """Return rows; keep the lines of one that is still open."""
        rows: list[bytes] = []
        for line in lines:
            if self._open:
                if self._goes_on(line, rows):
                    continue
                # Whichever of these lines a row begins at, it would come to the same field.
                rows += self._open
                self._open, self._open_bytes = [], 0
            if self._quote not in line or (opened := self._quotes.opened(line)) is None:
                rows.append(line)
            else:
                self._open, self._open_bytes, self._field_size = [line], len(line), opened
        return rows

    def _goes_on(self, line: bytes, rows: list[bytes]) -> bool:
        """Take a line into the open row, unless that makes its field longer than one may be."""
        close = self._quotes.closing(line) if self._quote in line else len(line)
        self._field_size += 1 + self._quotes.size(line[:close])
        if self._field_size > csv.field_size_limit():
            return False
        self._open.append(line)
        self._open_bytes += 1 + len(line)
        if close == len(line):
            return True
        opened = self._quotes.opened(line, close)
        if opened is None:
            rows.append(b"\n".join(self._open))
            self._open, self._open_bytes = [], 0
        else:
            self._field_size = opened
        return True


class _Quotes:
    """Where quoted fields end and begin within a line, as the csv module reads it."""

    def __init__(self, delimiter: str, quotechar: str) -> None:
        delimiter, quote = re.escape(delimiter), re.escape(quotechar)
        body = f"[^{quote}]*+(?:{quote}{quote}[^{quote}]*+)*+"
        plain = f"[^{delimiter}\r]*+"  # a quote that does not begin a field is text
        cell = f"(?:{quote}{body}{quote}{plain}|(?!{quote}){plain})"
        self._doubled = 2 * quotechar.encode()
        self._body = re.compile(body.encode())
        self._row = re.compile(f"{cell}(?:{delimiter}{cell})*+".encode())
        self._rest = re.compile(f"{quote}{plain}(?:{delimiter}{cell})*+".encode())

    def opened(self, line: bytes, close: int | None = None) -> int | None:
        """Return the size of the field that is open at the end of a line, None if none is.

        Args:
            line: The line.
            close: Where a field ends that was open before it.
        """
        match = self._row.match(line) if close is None else self._rest.match(line, close)
        if match is None:
            return self.size(line[1:])
        stop = match.end()  # at the end, at a carriage return, or at a delimiter and a quote
        if stop == len(line) or line.startswith(b"\r", stop):
            return None
        return self.size(line[stop + 2 :])

    def closing(self, line: bytes) -> int:
        """Return where in a line a field ends that was open before it; its length if nowhere."""
        match = self._body.match(line)
        assert match is not None
        return match.end()

    def size(self, text: bytes) -> int:
        """Return the size of a part of a quoted field."""
        return len(text) - text.count(self._doubled)


def _without_empty(lines: list[bytes]) -> list[bytes]:
    return [line for line in lines if line not in (b"", b"\r")]


class MsgpackSplitter:
    """A payload is a msgpack value; they follow one another with nothing between."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._unpacker = msgpack.Unpacker(max_buffer_size=2 * MAX_PAYLOAD_BYTES)
        self._start = 0  # of the buffer, as the unpacker counts bytes
        self._is_damaged = False

    @property
    def rest(self) -> bytes:
        """The value that is not whole."""
        self._check()
        return bytes(self._buffer)

    def split(self, data: bytes) -> list[bytes]:
        """Return the values that ``data`` completes."""
        self._check()
        self._buffer += data
        check_payload_size(len(self._buffer))
        self._unpacker.feed(data)
        ends = list(self._ends())
        payloads = [bytes(self._buffer[a:b]) for a, b in pairwise([0, *ends])]
        if ends:
            del self._buffer[: ends[-1]]
            self._start += ends[-1]
        return payloads

    def end(self) -> list[bytes]:
        """Return a value that the end of the file cuts off."""
        rest = self.rest
        self._buffer.clear()
        return [rest] if rest else []

    def _ends(self) -> Iterator[int]:
        while True:
            try:
                self._unpacker.skip()
            except msgpack.OutOfData:
                return
            except ValueError:  # said at the next call, so that the values before it are returned
                self._is_damaged = True
                return
            yield self._unpacker.tell() - self._start

    def _check(self) -> None:
        if self._is_damaged:
            message = "bytes that are not msgpack"
            raise ValueError(message)


def check_payload_size(size_bytes: int) -> None:
    """Refuse a payload so long that it can only be damage.

    Raises:
        ValueError: It is.
    """
    if size_bytes > MAX_PAYLOAD_BYTES:
        message = f"a record of more than {MAX_PAYLOAD_BYTES} bytes"
        raise ValueError(message)

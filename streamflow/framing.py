"""Framing: where one record ends and the next begins in the bytes of a file.

A splitter is fed a file's bytes as they come and gives back whole payloads. It does no I/O and
never decodes, so a payload that turns out to be bad still has its original bytes.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import pairwise
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

    @property
    def rest(self) -> bytes:
        """The line that is not ended."""
        return b"".join(self._parts)

    def split(self, data: bytes) -> list[bytes]:
        """Return the lines that ``data`` completes."""
        if b"\n" not in data:
            self._parts.append(data)
            check_payload_size(sum(map(len, self._parts)))
            return []
        lines = b"".join([*self._parts, data]).split(b"\n")
        self._parts = [lines.pop()]
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
        return [line for line in lines if line not in (b"", b"\r")]


class CsvSplitter:
    """A payload is a row: a line, or several where a quoted field holds line breaks.

    A quote that is never closed, or not within what the csv module takes as one field, spoils only
    the line that opens it.
    """

    def __init__(self, *, delimiter: str, quotechar: str) -> None:
        self._delimiter = delimiter
        self._quotechar = quotechar
        self._lines = LineSplitter(is_text=False)
        self._is_first = True
        self._open: list[bytes] = []

    @property
    def rest(self) -> bytes:
        """The row that is not ended."""
        return b"\n".join([*self._open, self._lines.rest])

    def split(self, data: bytes) -> list[bytes]:
        """Return the rows that ``data`` completes."""
        return self._rows(self._lines.split(data), at_end=False)

    def end(self) -> list[bytes]:
        """Return the rows that the end of the file completes."""
        return self._rows(self._lines.end(), at_end=True)

    def _rows(self, lines: list[bytes], *, at_end: bool) -> list[bytes]:
        if self._is_first and lines:
            self._is_first = False
            lines[0] = lines[0].removeprefix(_BYTE_ORDER_MARK)
        quote = self._quotechar.encode()
        if self._open or any(quote in line for line in lines):
            lines, self._open = self._open + lines, []
            lines = list(self._joined(lines, at_end=at_end))
        return [line for line in lines if line not in (b"", b"\r")]

    def _joined(self, lines: list[bytes], *, at_end: bool) -> Iterator[bytes]:
        """Yield rows; keep the lines of one that is still open."""
        start = 0
        while start < len(lines):
            try:
                for stop in self._stops(lines, start, at_end=at_end):
                    yield b"\n".join(lines[start:stop])
                    start = stop
            except csv.Error:
                yield lines[start]
                start += 1
            else:
                self._open = lines[start:]
                return

    def _stops(self, lines: list[bytes], start: int, *, at_end: bool) -> Iterator[int]:
        """Yield where each row that begins in ``lines[start:]`` stops, up to one still open."""
        is_exhausted = False

        def texts() -> Iterator[str]:
            nonlocal is_exhausted
            for line in lines[start:]:
                yield line.decode("latin-1")  # every byte decodes, and only ASCII has a meaning
            is_exhausted = True

        reader = csv.reader(texts(), delimiter=self._delimiter, quotechar=self._quotechar)
        for _ in reader:
            if is_exhausted:  # the reader asked for more within this row
                if at_end:
                    raise csv.Error
                return
            yield start + reader.line_num


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
    """Raise ValueError if a payload this long can only be damage."""
    if size_bytes > MAX_PAYLOAD_BYTES:
        message = f"a record of more than {MAX_PAYLOAD_BYTES} bytes"
        raise ValueError(message)

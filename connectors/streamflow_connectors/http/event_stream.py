"""The format of server-sent events, as the HTML standard says (section 9.2)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_BOM: Final = b"\xef\xbb\xbf"
_END: Final = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """An event.

    Attributes:
        data: Its lines, joined.
        type: ``message`` unless the server says something else.
        id: The last one that the server has given to an event; empty if none.
    """

    data: bytes
    type: str
    id: str


class EventParser:
    """Reads events from bytes as they come.

    Args:
        last_id: Of the connection before.
        limit: Bytes that an event may have.

    Attributes:
        retry: Seconds to wait before connecting again, as the server says.
        is_overfull: Whether an event is larger than the limit.
    """

    def __init__(self, last_id: str, limit: int) -> None:
        self.retry = 0.0
        self.is_overfull = False
        self._id = last_id
        self._limit = limit
        self._rest = b""
        self._is_first = True
        self._data: list[bytes] = []
        self._size = 0
        self._type = ""

    def __repr__(self) -> str:
        return f"<EventParser {len(self._rest)} bytes of a line, {len(self._data)} lines of data>"

    def feed(self, chunk: bytes) -> list[ServerEvent]:
        """Return the events that are complete with ``chunk``; none once one is too large."""
        events: list[ServerEvent] = []
        for line in self._lines(chunk):
            if line:
                self._take(line)
            elif self._data and not self.is_overfull:
                events.append(
                    ServerEvent(b"\n".join(self._data), self._type or "message", self._id)
                )
            if not line:
                self._data, self._size, self._type = [], 0, ""
        self._check(len(self._rest))
        return events

    def _check(self, more: int = 0) -> None:
        if self._size + more > self._limit:
            self.is_overfull = True

    def _lines(self, chunk: bytes) -> Iterator[bytes]:
        whole = self._rest + chunk
        if self._is_first:
            if len(whole) < len(_BOM) and _BOM.startswith(whole):
                self._rest = whole
                return
            whole, self._is_first = whole.removeprefix(_BOM), False
        start = 0
        for end in _END.finditer(whole):
            if end[0] == b"\r" and end.end() == len(whole):
                break  # a line feed may follow, which belongs to it
            yield whole[start : end.start()]
            start = end.end()
        self._rest = whole[start:]

    def _take(self, line: bytes) -> None:
        name, _, text = line.partition(b":")
        text = text.removeprefix(b" ")
        if name == b"data":
            self._data.append(text)
            self._size += len(text)
            self._check()
        elif name == b"event":
            self._type = text.decode(errors="replace")
        elif name == b"id" and b"\0" not in text:
            self._id = text.decode(errors="replace")
        elif name == b"retry" and text.isdigit():
            self.retry = int(text) / 1000

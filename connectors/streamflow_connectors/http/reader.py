"""An open HTTP source: a task asks, and what comes waits in a backlog."""

from __future__ import annotations

import hashlib
import math
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Final

import anyio
import httpx

from streamflow.codecs.values import dump_json, load_json
from streamflow.contracts import Context, Reader
from streamflow.errors import ConnectorError
from streamflow_connectors.http.event_stream import EventParser, ServerEvent
from streamflow_connectors.http.options import HttpSourceOptions
from streamflow_connectors.network.backlog import Backlog, BacklogReader, pumping
from streamflow_connectors.network.reading import Item
from streamflow_connectors.network.retries import Retries

OK: Final = 200
NO_CONTENT: Final = 204
NOT_MODIFIED: Final = 304
PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
LONGEST_DELAY: Final = 60.0
"""Seconds that a server may ask to wait, in ``Retry-After`` or an event stream's ``retry``."""


@asynccontextmanager
async def open_reader(source: HttpSourceOptions, context: Context) -> AsyncIterator[Reader]:
    """Read the certificates, and ask until the block is left.

    Raises:
        ConnectorError: The certificates cannot be read.
    """
    retries = Retries(source, context, _why_it_may_pass)
    reader = BacklogReader(context, source.format.codec(), retries, end_after=source.end_after)
    async with httpx.AsyncClient(
        headers=source.request_headers(),
        verify=await source.tls_in_thread(context) or True,
        timeout=httpx.Timeout(source.read_timeout, connect=source.connect_timeout),
        follow_redirects=True,
    ) as client:
        answers = (_Events if source.mode == "events" else _Page)(source, context, client)

        async def pump(backlog: Backlog) -> None:
            while not answers.has_ended:
                await retries.run(lambda: answers.read(backlog, retries.passed))

        async with pumping(pump, reader.backlog):
            yield reader


class _Answers:
    """What the two modes share: requests, and what is wrong with their answers."""

    def __init__(
        self, source: HttpSourceOptions, context: Context, client: httpx.AsyncClient
    ) -> None:
        self.has_ended = False
        self._source = source
        self._name = context.name
        self._client = client

    @asynccontextmanager
    async def _answer(self, headers: Mapping[bytes, bytes]) -> AsyncIterator[httpx.Response]:
        async with self._client.stream("GET", self._source.url, headers=headers) as answer:
            if answer.status_code in PASSING:
                await anyio.sleep(_delay(answer.headers.get("retry-after", "")))
                answer.raise_for_status()
            if answer.status_code not in (OK, NO_CONTENT, NOT_MODIFIED):
                found = f"{answer.status_code} {answer.reason_phrase}".strip()
                cure = "check url, token, username and password"
                raise ConnectorError(self._refused("an answer", found, cure))
            yield answer

    def _refused(self, expected: str, found: str, cure: str) -> str:
        message = f"{self._name}: expected {expected} from {self._source.shown}, found {found}"
        return f"{message}; {cure}"

    def _too_large(self, what: str) -> str:
        expected = f"{what} of at most {self._source.max_bytes} bytes"
        return self._refused(expected, "a larger one", "raise max_bytes")


class _Events(_Answers):
    """An event stream, connected to once more each time."""

    _last_id = ""
    _delay = 0.0

    async def read(self, backlog: Backlog, passed: Callable[[], None]) -> None:
        """Read events until the connection is lost.

        Raises:
            EOFError: The server has ended the stream, and may be asked again.
        """
        headers = {b"accept": b"text/event-stream", b"cache-control": b"no-store"}
        if self._last_id:
            headers[b"last-event-id"] = self._last_id.encode()
        async with self._answer(headers) as answer:
            if answer.status_code == NO_CONTENT:  # what ends a stream for good
                self.has_ended = True
                passed()
                return
            found = answer.headers.get("content-type", "none")
            if found.partition(";")[0].strip().lower() != "text/event-stream":
                cure = "check url, or use mode: poll"
                raise ConnectorError(self._refused("text/event-stream", found, cure))
            parser = EventParser(self._last_id, self._source.max_bytes)
            with anyio.CancelScope() as reading:  # ends httpx's generators, which raising would not
                async for chunk in answer.aiter_bytes():
                    for event in parser.feed(chunk):
                        passed()
                        await self._put(event, backlog)
                    self._delay = min(parser.retry, LONGEST_DELAY)
                    if parser.is_overfull:
                        reading.cancel()
        if parser.is_overfull:
            raise ConnectorError(self._too_large("events"))
        await anyio.sleep(self._delay)
        message = "the server has ended the stream"
        raise EOFError(message)

    async def _put(self, event: ServerEvent, backlog: Backlog) -> None:
        if not self._source.events or event.type in self._source.events:
            headers = (("event", event.type.encode()), ("id", event.id.encode()))
            await backlog.put(Item(event.data, headers=headers if event.id else headers[:1]))
        self._last_id = event.id


class _Page(_Answers):
    """A page, asked for once each time."""

    _next = -math.inf
    _last: bytes | None = None
    _validators: Mapping[bytes, bytes] = MappingProxyType({})

    async def read(self, backlog: Backlog, passed: Callable[[], None]) -> None:
        """Ask for the page when it is time, and read what is new."""
        await anyio.sleep(max(0.0, self._next - anyio.current_time()))
        started = anyio.current_time()
        async with self._answer(self._validators) as answer:
            content = bytearray()
            with anyio.CancelScope() as reading:  # as above
                async for chunk in answer.aiter_bytes():
                    content += chunk
                    if len(content) > self._source.max_bytes:
                        reading.cancel()
        if len(content) > self._source.max_bytes:
            raise ConnectorError(self._too_large("a page"))
        passed()
        self._next = started + self._source.every
        if answer.status_code != OK:
            return
        if not self._source.repeat:
            self._validators = dict(_validators(answer.headers))
        digest = hashlib.sha256(content).digest()
        if digest != self._last or self._source.repeat:
            for item in self._items(bytes(content)):
                await backlog.put(item)
        self._last = digest

    def _items(self, content: bytes) -> Iterator[Item]:
        if self._source.body == "lines":
            yield from (Item(line) for line in content.splitlines() if line.strip())
        elif self._source.body == "record":
            yield Item(content)
        else:
            yield from _of_list(content)


def _of_list(content: bytes) -> Iterator[Item]:
    try:
        found = load_json(content)
    except ValueError as error:
        yield Item(content, cause=f"expected a JSON list, found {error}")
        return
    if not isinstance(found, list):
        yield Item(content, cause=f"expected a JSON list, found {type(found).__name__}")
        return
    yield from (Item(dump_json(item)) for item in found)


def _validators(headers: httpx.Headers) -> Iterator[tuple[bytes, bytes]]:
    for name, asked in (("etag", b"if-none-match"), ("last-modified", b"if-modified-since")):
        if name in headers:
            yield asked, headers[name].encode(headers.encoding)


def _delay(text: str) -> float:
    """Return the seconds that a server asks to wait."""
    return min(float(text), LONGEST_DELAY) if text.isdecimal() else 0.0


def _why_it_may_pass(error: Exception) -> str | None:
    if isinstance(error, httpx.HTTPStatusError):
        return f"{error.response.status_code} {error.response.reason_phrase}".strip()
    # What a server says of a certificate after the handshake, httpx lets through as it is.
    is_of_network = isinstance(error, httpx.TransportError | ssl.SSLError)
    if is_of_network and not isinstance(error, httpx.UnsupportedProtocol):
        return f"{type(error).__name__} {_words(error)}".strip()
    return str(error) if isinstance(error, EOFError) else None


def _words(error: BaseException | None) -> str:
    """Return what an error says, or the nearest one behind it that says something."""
    while error is not None and not str(error):
        error = error.__cause__ or error.__context__
    return str(error or "")

"""Open WebSocket sources and sinks: clients that connect again when they lose the server."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import anyio.lowlevel
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidMessage,
    InvalidStatus,
    PayloadTooBig,
)
from websockets.protocol import State

from streamflow.codecs.formats import CsvFormat, JsonFormat
from streamflow.contracts import Context, Reader, Writer
from streamflow.records import Batch, Rejected, split_rejected
from streamflow_connectors.network.backlog import Backlog, BacklogReader, pumping
from streamflow_connectors.network.loops import require_asyncio
from streamflow_connectors.network.reading import Item
from streamflow_connectors.network.retries import Retries
from streamflow_connectors.network.writing import RetryingWriter
from streamflow_connectors.websocket.options import (
    WebSocketOptions,
    WebSocketSinkOptions,
    WebSocketSourceOptions,
)

TOO_BIG: Final = 1009
REFUSALS: Final = frozenset({1002, 1003, 1007, 1008, 1010})
"""Codes with which a server says that it does not want what it gets."""

FAILING_STATUS: Final = 500
BUSY: Final = frozenset({408, 425, 429})
CLOSING_SECONDS: Final = 1.0


@asynccontextmanager
async def open_reader(source: WebSocketSourceOptions, context: Context) -> AsyncIterator[Reader]:
    """Read the certificates; connect, and read until the block is left.

    Raises:
        ConnectorError: The certificates cannot be read, or the event loop is not asyncio's.
    """
    link = await WebSocketLink.prepared(source, context, {"max_size": source.max_bytes})
    reader = BacklogReader(context, source.format.codec(), link.retries, end_after=source.end_after)

    async def read(backlog: Backlog) -> None:
        connection = await link.connection()
        async for message in connection:
            link.retries.passed()
            await backlog.put(Item(message.encode() if isinstance(message, str) else message))
        await connection.recv()  # it is closed: raises how

    async def pump(backlog: Backlog) -> None:
        while True:
            await link.retries.run(lambda: read(backlog))

    try:
        async with pumping(pump, reader.backlog):
            yield reader
    finally:
        await link.aclose(CLOSING_SECONDS)


@asynccontextmanager
async def open_writer(sink: WebSocketSinkOptions, context: Context) -> AsyncIterator[Writer]:
    """Connect; close when the block is left, once the server has taken what is on its way.

    Raises:
        ConnectorError: The server refuses or is away for too long, the certificates cannot be read,
            or the event loop is not asyncio's.
    """
    link = await WebSocketLink.prepared(sink, context, {"close_timeout": sink.linger})
    try:
        await link.retries.run(link.connection)
        yield WebSocketWriter(link, sink, context)
    finally:
        await link.aclose(sink.linger)


class WebSocketWriter(RetryingWriter):
    """Sends to a server; see `contracts.Writer`. Delivered means that it is on its way."""

    def __init__(self, link: WebSocketLink, sink: WebSocketSinkOptions, context: Context) -> None:
        super().__init__(context, link.retries)
        self._link = link
        self._codec = sink.format.codec()
        self._is_text = isinstance(sink.format, JsonFormat | CsvFormat)

    async def write(self, batch: Batch) -> Rejected | None:
        """Send a batch, waiting while there is no room; return what cannot be encoded.

        Raises:
            ConnectorError: The server refuses, or is away for too long.
        """
        await anyio.lowlevel.checkpoint()
        encoded = self._codec.encode(batch)
        rest = deque(encoded.payloads)

        async def send_rest() -> None:
            while rest:
                await self._send(rest[0])
                rest.popleft()

        await self._retries.run(send_rest)
        return split_rejected(batch, encoded.causes)[1]

    async def _send(self, payload: bytes) -> None:
        connection = await self._link.connection()
        await connection.send(payload.decode() if self._is_text else payload)
        self._retries.passed()
        self._num_sent += 1


class WebSocketLink:
    """A connection, and how to have one again."""

    def __init__(
        self, declared: WebSocketOptions, context: Context, options: Mapping[str, Any], tls: Any
    ) -> None:
        self.retries = Retries(declared, context, _why_it_may_pass, _refusal)
        self._declared = declared
        self._options = options
        self._tls = tls
        self._connection: ClientConnection | None = None
        self._discarding: asyncio.Task[None] | None = None

    @classmethod
    async def prepared(
        cls, declared: WebSocketOptions, context: Context, options: Mapping[str, Any]
    ) -> WebSocketLink:
        """Read the certificates; ``options`` are the driver's beside those that are declared.

        Raises:
            ConnectorError: They cannot be read, or the event loop is not asyncio's.
        """
        require_asyncio(context, "WebSockets'")
        return cls(declared, context, options, await declared.tls_in_thread(context))

    async def connection(self) -> ClientConnection:
        """Return the connection, a new one if there is none.

        Raises:
            ConnectionClosed: It is lost; the next call makes a new one.
        """
        if self._connection is None:
            self._connection = await self._connect()
        elif self._connection.state is State.CLOSED:
            lost = self._connection.protocol.close_exc
            await self.aclose(0.0)
            raise lost
        return self._connection

    async def aclose(self, patience: float) -> None:
        """Say goodbye, for so many seconds at the most."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        with anyio.move_on_after(patience, shield=True):
            await connection.close()
        connection.transport.abort()
        if self._discarding is not None:
            self._discarding.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.gather(self._discarding, return_exceptions=True)

    async def _connect(self) -> ClientConnection:
        declared = self._declared
        made = await connect(
            declared.url,
            additional_headers=declared.request_headers(),
            ssl=self._tls,
            open_timeout=declared.connect_timeout,
            **self._options,
        )
        for message in declared.first:
            await made.send(message)
        if isinstance(declared, WebSocketSinkOptions):
            # What nobody reads would hold up the answers to its pings.
            self._discarding = asyncio.create_task(_discard(made))
        return made


async def _discard(connection: ClientConnection) -> None:
    async for _ in connection:
        pass


def _why_it_may_pass(error: Exception) -> str | None:
    if isinstance(error, InvalidStatus):
        status = error.response.status_code
        is_passing = status >= FAILING_STATUS or status in BUSY
        return f"status {status}" if is_passing else None
    if isinstance(error, ConnectionClosed):
        return None if _code(error) in {*REFUSALS, TOO_BIG} else str(error)
    if isinstance(error, OSError | TimeoutError | InvalidMessage | EOFError):
        return f"{type(error).__name__} {error}".strip()
    return None


def _code(error: ConnectionClosed) -> int | None:
    closed = error.rcvd or error.sent
    return closed.code if closed else None


def _refusal(error: Exception) -> str | None:
    if not isinstance(error, InvalidHandshake | ConnectionClosed | PayloadTooBig):
        return None
    if isinstance(error, PayloadTooBig) or (
        isinstance(error, ConnectionClosed) and _code(error) == TOO_BIG
    ):
        return "a message that is too large for one end; raise max_bytes, or send smaller ones"
    return f"{error}; check url, token, username, password and first"

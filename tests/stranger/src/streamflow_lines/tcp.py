"""Records as lines over TCP: an example of a connector."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import anyio
import anyio.lowlevel
from anyio.abc import SocketStream
from pydantic import Field

from streamflow.codecs import Codec, FormatField, JsonFormat, decode, encode
from streamflow.contracts import Context, Fetch, Reader, Writer
from streamflow.errors import ConnectorError
from streamflow.nodes import Declaration, Sink, Source
from streamflow.records import Batch, Partition, Rejected

MOST_BYTES = 2**20


class Peer(Declaration):
    """Who is at the other end; what stands here stands in the YAML."""

    host: str = Field("127.0.0.1", description="Who listens.")
    port: int = Field(ge=1, lt=2**16, description="The port.")
    format: FormatField = Field(
        default_factory=JsonFormat, description="How values become bytes and back."
    )

    @asynccontextmanager
    async def connect(self, context: Context) -> AsyncIterator[SocketStream]:
        try:
            stream = await anyio.connect_tcp(self.host, self.port)
        except OSError as error:
            message = (
                f"{context.name}: expected somebody to listen at {self.host}:{self.port}, "
                f"found {error}; start the other end first"
            )
            raise ConnectorError(message) from error
        async with stream:
            yield stream


class TcpSource(Peer, Source):
    """Reads a record from each line, until the other end closes the connection."""

    type: Literal["tcp"] = "tcp"

    def decoder(self, folder: Path, position: Mapping[str, str | int]) -> Codec:
        """Return what decodes a dead letter again."""
        return self.format.codec()

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[Reader]:
        async with self.connect(context) as stream:
            yield TcpReader(stream, self.format.codec(), Partition(context.name))


class TcpReader:
    """An open source."""

    def __init__(self, stream: SocketStream, codec: Codec, partition: Partition) -> None:
        self._stream = stream
        self._codec = codec
        self._partition = partition
        self._rest = b""
        self._next = 0

    async def receive(self) -> Fetch:
        """Wait for lines and return those at hand; anyio.EndOfStream comes from the stream."""
        while b"\n" not in self._rest:
            if len(self._rest) > MOST_BYTES:
                message = (
                    f"{self._partition}: expected lines of at most {MOST_BYTES} bytes, "
                    f"found a longer one; look at who sends"
                )
                raise ConnectorError(message)
            try:
                self._rest += await self._stream.receive()
            except anyio.EndOfStream:
                if not self._rest:
                    raise
                self._rest += b"\n"  # the last line may lack its end
        *lines, self._rest = self._rest.split(b"\n")
        start, self._next = self._next, self._next + len(lines)
        batch = Batch(
            lines,
            partitions=[self._partition] * len(lines),
            offsets=range(start, self._next),
            originals=lines,  # what dead letters keep
            size_bytes=2 * sum(map(len, lines)),
        )
        return decode(self._codec, batch, {self._partition: self._next})

    async def commit(self, positions: Mapping[Partition, int]) -> None:
        """Do nothing: a socket keeps no positions."""

    def behind(self) -> int | None:
        """Return None: nobody knows how much is to come."""
        return None


class TcpSink(Peer, Sink):
    """Sends each record as a line."""

    type: Literal["tcp"] = "tcp"

    @property
    def confirms(self) -> bool:
        """Say that nobody confirms what arrives, so that `validate` can tell."""
        return False

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[Writer]:
        async with self.connect(context) as stream:
            yield TcpWriter(stream, self.format.codec())


class TcpWriter:
    """An open sink."""

    def __init__(self, stream: SocketStream, codec: Codec) -> None:
        self._stream = stream
        self._codec = codec

    async def write(self, batch: Batch) -> Rejected | None:
        """Send records, waiting while there is no room; return those that cannot be encoded."""
        _, payloads, rejected = encode(self._codec, batch)
        await self._stream.send(b"".join(payload + b"\n" for payload in payloads))
        return rejected

    async def flush(self) -> None:
        """Do nothing: what was sent is on its way."""
        await anyio.lowlevel.checkpoint()

    async def mark(self) -> Mapping[str, Any]:
        """Return nothing: what was sent cannot be taken back."""
        return {}

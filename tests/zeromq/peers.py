"""Sockets at the other end, by hand, and what is read with a source."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import msgpack  # type: ignore[import-untyped]
import zmq

from streamflow.contracts import Context, Fetch
from streamflow.records import Record
from streamflow_connectors.zeromq import ZeroMqSink, ZeroMqSource
from streamflow_connectors.zeromq.reader import ZeroMqReader
from streamflow_connectors.zeromq.writer import ZeroMqWriter
from tests.traces import PLENTY

FEED = "ipc://feed"


@contextmanager
def short_folder() -> Iterator[Path]:
    """Give a folder whose paths are short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="zmq") as path:
        yield Path(path)


@contextmanager
def peer(kind: int, options: dict[int, Any] | None = None) -> Iterator[zmq.Socket[bytes]]:
    """Give a socket that never waits for ever."""
    limit = round(PLENTY * 1000)
    with zmq.Context() as context, context.socket(kind) as made:
        for option, value in {zmq.RCVTIMEO: limit, zmq.SNDTIMEO: limit, **(options or {})}.items():
            made.set(option, value)
        made.linger = 0
        yield made


def header(sender: bytes | None, number: int | None, *rest: Any) -> bytes:
    """Return a header as another implementation would write it."""
    key, timestamp_ms, headers = rest or (None, None, [])
    packed: bytes = msgpack.packb([1, sender, number, key, timestamp_ms, headers])
    return packed


@asynccontextmanager
async def reading(folder: Path, **options: Any) -> AsyncIterator[ZeroMqReader]:
    """Open a source."""
    source = ZeroMqSource(**{"socket": "pull", **options})
    with anyio.fail_after(PLENTY):
        async with source.open(Context("in", folder)) as reader:
            assert isinstance(reader, ZeroMqReader)
            yield reader


@asynccontextmanager
async def writing(folder: Path, **options: Any) -> AsyncIterator[ZeroMqWriter]:
    """Open a sink."""
    sink = ZeroMqSink(**{"socket": "push", "linger": PLENTY, **options})
    with anyio.fail_after(PLENTY):
        async with sink.open(Context("out", folder)) as writer:
            assert isinstance(writer, ZeroMqWriter)
            yield writer


async def receive(reader: ZeroMqReader, count: int) -> list[Fetch]:
    """Return what brings ``count`` records, those that are rejected included."""
    fetches: list[Fetch] = []
    while sum(fetch.num_records for fetch in fetches) < count:
        fetches.append(await reader.receive())
    return fetches


async def receive_records(reader: ZeroMqReader, count: int) -> list[Record]:
    """Return the next ``count`` records, of which none is rejected."""
    fetches = await receive(reader, count)
    return [record for fetch in fetches for record in fetch.batch.records()]


async def receive_values(reader: ZeroMqReader, count: int) -> list[Any]:
    """Return their values."""
    return [record.value for record in await receive_records(reader, count)]


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nobody has used lately."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        port: int = server.getsockname()[1]
        return port

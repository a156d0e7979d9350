"""A WebSocket server on this machine that does as a test says."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve

Handler = Callable[[ServerConnection], Coroutine[Any, Any, None]]


@dataclass
class Served:
    """What is known of a server.

    Attributes:
        url: Where it listens.
        headers: Of each handshake.
        received: All messages that `receive` has read.
        server: The server itself.
    """

    url: str
    server: Server
    headers: list[dict[str, str]] = field(default_factory=list)
    received: list[Any] = field(default_factory=list)


@asynccontextmanager
async def serving(
    handler: Handler, tls: ssl.SSLContext | None = None, **options: Any
) -> AsyncIterator[Served]:
    async def handle(connection: ServerConnection) -> None:
        assert connection.request is not None
        served.headers.append(dict(connection.request.headers.raw_items()))
        handling = asyncio.ensure_future(handler(connection))
        closing = asyncio.ensure_future(connection.wait_closed())
        await asyncio.wait([handling, closing], return_when=asyncio.FIRST_COMPLETED)
        for task in (handling, closing):
            task.cancel()
        await asyncio.gather(handling, closing, return_exceptions=True)

    settings = {"close_timeout": 0.1, "ping_interval": None, **options}
    async with serve(handle, "127.0.0.1", 0, ssl=tls, **settings) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        served = Served(f"{'wss' if tls else 'ws'}://127.0.0.1:{port}/feed", server)
        yield served

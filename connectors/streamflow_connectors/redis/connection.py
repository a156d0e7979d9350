"""What readers and writers of Redis share: a client, and what may pass of its errors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import anyio

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    ConnectionError,  # the driver's
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    TimeoutError,  # likewise
    TryAgainError,
)
from streamflow.contracts import Context
from streamflow.errors import ConnectorError
from streamflow_connectors.network.loops import require_asyncio
from streamflow_connectors.network.retries import Retries
from streamflow_connectors.redis.nodes import RedisOptions

CLOSING_SECONDS: Final = 1.0

ANSWER_SECONDS: Final = 30.0
"""Within which a server answers, or the connection counts as lost."""

_PASSING: Final = (
    *(ClusterDownError, ConnectionError, OutOfMemoryError, ReadOnlyError),
    *(TimeoutError, TryAgainError, OSError),
)

T = TypeVar("T")


class Link:
    """A client, and how to try again.

    Attributes:
        client: The driver's.
        retries: What is tried again.
    """

    def __init__(self, declared: RedisOptions, context: Context) -> None:
        self.client = _client(declared, context)
        self.retries = Retries(context.name, declared.shown, declared.retry_for, _why_it_may_pass)
        self._name = context.name
        self._shown = declared.shown

    async def run(self, action: Callable[[], Awaitable[T]]) -> T:
        """Return what ``action`` returns, the first time that it does not fail.

        Raises:
            ConnectorError: The server refuses, or is away for too long.
        """
        try:
            found = await self.retries.run(action)
        except RedisError as error:
            message = (
                f"{self._name}: expected {self._shown} to go along, found {error}; "
                "check url, username, password and the names of streams and group"
            )
            raise ConnectorError(message) from error
        self.retries.passed()
        return found


@asynccontextmanager
async def connected(declared: RedisOptions, context: Context) -> AsyncIterator[Link]:
    """Connect; disconnect when the block is left."""
    require_asyncio(context, "Redis'")
    await declared.tls_in_thread(context)  # says what is wrong with the certificates
    link = Link(declared, context)
    try:
        await link.run(link.client.ping)
        yield link
    finally:
        with anyio.move_on_after(CLOSING_SECONDS, shield=True):
            await link.client.aclose()


def _client(declared: RedisOptions, context: Context) -> Redis:
    [address] = declared.addresses
    host, _, port = address.rpartition(":")
    options: dict[str, Any] = {}
    if declared.is_encrypted:
        secret = declared.key_password
        files = {
            "ssl_ca_certs": declared.ca_file,
            "ssl_certfile": declared.cert_file,
            "ssl_keyfile": declared.key_file,
        }
        options = {
            "ssl": True,
            "ssl_password": secret and secret.get_secret_value(),
            **{name: str(context.folder / path) for name, path in files.items() if path},
        }
    password = declared.password
    return Redis(
        host=host,
        port=int(port),
        db=declared.database,
        username=declared.username,
        password=password.get_secret_value() if password else None,
        socket_connect_timeout=declared.connect_timeout,
        socket_timeout=ANSWER_SECONDS,
        retry=Retry(NoBackoff(), 0),
        **options,
    )


def _why_it_may_pass(error: Exception) -> str | None:
    if isinstance(error, AuthenticationError | AuthorizationError):
        return None
    return f"{type(error).__name__} {error}".strip() if isinstance(error, _PASSING) else None

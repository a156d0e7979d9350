"""What readers and writers of Redis share: a client, and what may pass of its errors."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

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
from streamflow_connectors.network.loops import require_asyncio
from streamflow_connectors.network.retries import Retries
from streamflow_connectors.redis.options import RedisOptions

CLOSING_SECONDS: Final = 1.0

ANSWER_SECONDS: Final = 30.0
"""Within which a server answers, or the connection counts as lost."""

_PASSING: Final = (
    *(ClusterDownError, ConnectionError, OutOfMemoryError, ReadOnlyError),
    *(TimeoutError, TryAgainError, OSError),
)


class RedisLink(NamedTuple):
    """A client of the driver's, and what is tried again with it."""

    client: Redis
    retries: Retries


@asynccontextmanager
async def connected(declared: RedisOptions, context: Context) -> AsyncIterator[RedisLink]:
    """Connect; disconnect when the block is left.

    Raises:
        ConnectorError: The server refuses or is away for too long, a certificate cannot be read, or
            the event loop is not asyncio's.
    """
    require_asyncio(context, "Redis'")
    await declared.tls_in_thread(context)  # says what is wrong with the certificates
    client = _client(declared, context)
    retries = Retries(declared, context, _why_it_may_pass, _refusal)
    try:
        await retries.run(client.ping)
        yield RedisLink(client, retries)
    finally:
        with anyio.move_on_after(CLOSING_SECONDS, shield=True):
            await client.aclose()


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


def _refusal(error: Exception) -> str | None:
    if not isinstance(error, RedisError):
        return None
    return f"{error}; check url, username, password and the names of streams and group"

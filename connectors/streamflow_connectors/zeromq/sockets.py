"""Opening sockets, waiting for them on any event loop, and closing them in a bounded time."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import zmq
from anyio import CapacityLimiter, to_thread

from streamflow.contracts import Context
from streamflow.errors import ConnectorError
from streamflow_connectors.zeromq.options import Endpoints

logger = logging.getLogger("streamflow.zeromq")

BURST: Final = 512
"""Messages to send or receive before others of the event loop have a turn."""


@asynccontextmanager
async def opened_socket(
    declared: Endpoints,
    context: Context,
    kind: int,
    options: Mapping[int, Any],
    *,
    linger: float = 0.0,
) -> AsyncIterator[zmq.Socket[bytes]]:
    """Open a socket with a context of its own; close both when the block is left.

    Args:
        declared: What it is for.
        context: What its node is told.
        kind: The type of socket.
        options: Its options beside those that ``declared`` tells.
        linger: Seconds that closing waits for peers to take what is on its way.

    Raises:
        ConnectorError: An endpoint is taken or cannot be used.
    """
    driver = zmq.Context()
    try:
        socket = driver.socket(kind)
        try:
            _set_up(socket, declared, context, options)
            yield socket
        finally:
            socket.close(linger=round(linger * 1000))
    finally:
        await _terminate(driver, context, linger)


async def wait_for(socket: zmq.Socket[bytes], event: int) -> None:
    """Wait until ``socket`` has the event, `zmq.POLLIN` or `zmq.POLLOUT`.

    Its descriptor tells that something has changed and not what, so ask again each time.
    """
    descriptor = socket.fileno()
    while not has_event(socket, event):
        await anyio.wait_readable(descriptor)


def has_event(socket: zmq.Socket[bytes], event: int) -> bool:
    """Return whether ``socket`` has the event now."""
    return bool(int(socket.get(zmq.EVENTS)) & event)


def _set_up(
    socket: zmq.Socket[bytes], declared: Endpoints, context: Context, options: Mapping[int, Any]
) -> None:
    has_ipv6 = any("[" in endpoint for endpoint in declared.bind + declared.connect)
    wanted = {zmq.IPV6: int(has_ipv6), **_curve_options(declared), **options}
    try:
        for option, value in wanted.items():
            socket.set(option, value)
    except zmq.ZMQError as error:
        message = (
            f"{context.name}: expected options that ZeroMQ takes, found {error}; "
            f"check the keys and the limits"
        )
        raise ConnectorError(message) from error
    for endpoint in _absolute(declared.bind, context):
        _attach(socket.bind, endpoint, f"{context.name}: expected to listen at {endpoint}")
    for endpoint in _absolute(declared.connect, context):
        _attach(socket.connect, endpoint, f"{context.name}: expected to connect to {endpoint}")


def _curve_options(declared: Endpoints) -> dict[int, Any]:
    if declared.curve_public_key is None or declared.curve_secret_key is None:
        return {}
    keys: dict[int, Any] = {
        zmq.CURVE_PUBLICKEY: declared.curve_public_key.encode(),
        zmq.CURVE_SECRETKEY: declared.curve_secret_key.get_secret_value().encode(),
    }
    if declared.curve_server_key is None:
        return {**keys, zmq.CURVE_SERVER: 1}
    return {**keys, zmq.CURVE_SERVERKEY: declared.curve_server_key.encode()}


def _absolute(endpoints: Sequence[str], context: Context) -> list[str]:
    """Return endpoints whose paths start at the node's folder."""
    return [
        f"ipc://{context.folder / endpoint.removeprefix('ipc://')}"
        if endpoint.startswith("ipc://")
        else endpoint
        for endpoint in endpoints
    ]


def _attach(attach: Any, endpoint: str, expected: str) -> None:
    try:
        attach(endpoint)
    except zmq.ZMQError as error:
        message = f"{expected}, found {error.strerror}; check the endpoint, and who else uses it"
        raise ConnectorError(message) from error


async def _terminate(driver: zmq.Context[Any], context: Context, linger: float) -> None:
    """Wait, in a thread, until peers have taken what is on its way, or for as long as allowed."""
    began = time.monotonic()
    with anyio.CancelScope(shield=True):  # the sockets' linger is the deadline
        await to_thread.run_sync(driver.term, limiter=CapacityLimiter(1))
    if 0 < linger <= time.monotonic() - began:
        logger.warning(
            "%s: peers did not take all records within %g s; what was on its way is lost; "
            "raise linger, or look at the receivers",
            context.name,
            linger,
        )

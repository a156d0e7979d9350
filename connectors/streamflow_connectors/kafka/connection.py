"""What readers and writers share: connecting within a deadline, and closing without a trace."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import anyio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer  # type: ignore[import-untyped]
from aiokafka.errors import KafkaConnectionError, KafkaError  # type: ignore[import-untyped]
from anyio import to_thread

from streamflow.contracts import Context
from streamflow.errors import ConnectorError
from streamflow_connectors.kafka.aiokafka_private import (
    KafkaClient,
    fail_waiting,
    tasks_of,
    transaction_error,
    try_connecting,
)
from streamflow_connectors.kafka.faults import Faults
from streamflow_connectors.kafka.options import Connection, KafkaSourceOptions
from streamflow_connectors.network.loops import require_asyncio
from streamflow_connectors.network.retries import attempts

logger = logging.getLogger("streamflow.kafka")

CLOSE_SECONDS = 5.0
"""How long a client may take to say goodbye; after that its tasks are cancelled."""

GRACE_SECONDS = 0.5
"""How long a task of the driver may take to end by itself before it is cancelled."""

REQUEST_SECONDS = 5.0, 30.0
"""Within which a request is answered at the least and at the most, as ``retry_for`` says."""

HURRY_SECONDS = 1.0
"""How long a client may take to say goodbye to a broker that does not answer."""

DEFAULT_PORT = 9092
REQUEST_SPARE_MS = 5000
FETCH_WAIT_MS = 100  # the broker's wait for new records, during which other partitions wait too
FETCH_BYTES = 8 * 2**20
METADATA_MS = 300_000  # the driver's own
HEARTBEAT_SECONDS = 3.0  # at the most
DAY_MS = 24 * 3600 * 1000  # a slow model is no dead member: heartbeats say whether it lives
DRAIN_FRACTION = 2 / 3  # of the rebalance timeout, after which the group goes on without a member


async def client_options(declared: Connection, context: Context) -> dict[str, Any]:
    """Return aiokafka's options for a client.

    Raises:
        ConnectorError: The event loop is not asyncio's, or a certificate cannot be read.
    """
    require_asyncio(context, "Kafka's")
    options = await to_thread.run_sync(declared.client_options, context)
    shortest, longest = REQUEST_SECONDS
    request_timeout = min(max(declared.retry_for, shortest), longest)
    return {**options, "request_timeout_ms": round(1000 * request_timeout)}


def new_consumer(source: KafkaSourceOptions, options: dict[str, Any]) -> AIOKafkaConsumer:
    """Return a consumer that is not started yet; ``options`` are those of a client."""
    # The answer to a request to join comes when all other members have joined.
    joining_ms = round(source.rebalance_timeout * 1000) + REQUEST_SPARE_MS
    return AIOKafkaConsumer(
        **{**options, "request_timeout_ms": max(options["request_timeout_ms"], joining_ms)},
        group_id=source.group,
        auto_offset_reset="none",
        enable_auto_commit=False,
        isolation_level=source.isolation,
        group_instance_id=source.group_instance_id,
        session_timeout_ms=round(source.session_timeout * 1000),
        heartbeat_interval_ms=round(1000 * _heartbeat_interval(source)),
        rebalance_timeout_ms=round(source.rebalance_timeout * 1000),
        max_poll_interval_ms=DAY_MS,
        fetch_max_bytes=FETCH_BYTES,
        fetch_max_wait_ms=FETCH_WAIT_MS,
        metadata_max_age_ms=round(source.refresh * 1000) if source.pattern else METADATA_MS,
    )


def _heartbeat_interval(source: KafkaSourceOptions) -> float:
    """Return how often to show signs of life, which is also how soon one hears of a rebalance."""
    heard_in_time = source.rebalance_timeout * (1 - DRAIN_FRACTION) / 2
    return min(source.session_timeout / 3, heard_in_time, HEARTBEAT_SECONDS)


@asynccontextmanager
async def connecting(
    declared: Connection, context: Context, options: dict[str, Any], *, wait: float = 0.0
) -> AsyncIterator[None]:
    """Bound the block by the connect timeout, and say of its errors what to do.

    Args:
        declared: What is opened.
        context: What its node is told.
        options: The client's.
        wait: Seconds more that the block may take because of others.

    Raises:
        ConnectorError: The block took too long, or the driver failed in it.
    """
    limit = declared.connect_timeout + wait
    try:
        with anyio.fail_after(limit):
            yield
    except TimeoutError:
        refusal: BaseException | None = None
        with anyio.move_on_after(GRACE_SECONDS):
            refusal = await _refusal(options)
        found = describe(refusal) if refusal else "it did not"
        message = (
            f"{context.name}: expected {declared.bootstrap_servers} to answer within "
            f"{limit:g} s, found {found}; check bootstrap_servers, the security options "
            "and that a broker runs there, or raise connect_timeout"
        )
        raise ConnectorError(message) from None
    except KafkaError as error:
        message = (
            f"{context.name}: expected {declared.bootstrap_servers} to let it in, "
            f"found {describe(error)}; check names and permissions"
        )
        raise ConnectorError(message) from error


async def reach(client: KafkaClient, context: Context, options: dict[str, Any]) -> None:
    """Connect to the first broker that answers; as long as none does, try again.

    It goes on for ever: the caller sets a deadline, as `connecting` does.

    Raises:
        ConnectorError: A broker refuses, which trying again would not change.
    """
    async for attempt in attempts(KafkaConnectionError):
        with attempt:
            try:
                await start(client.bootstrap())
            except KafkaConnectionError as error:
                found = await _refusal(options) or error
                if not _is_away(found):
                    raise _refused(context, options, found) from None
                if attempt.num == 1:
                    _tell(context, options, found)
                raise


def _is_away(error: Exception) -> bool:
    """Whether a broker is not there or cannot be reached, which may pass."""
    is_of_network = isinstance(error, OSError) and not isinstance(error, ssl.SSLError)
    return is_of_network or isinstance(error, KafkaConnectionError)


def _refused(context: Context, options: dict[str, Any], found: Exception) -> ConnectorError:
    message = (
        f"{context.name}: expected to connect to {options['bootstrap_servers']}, "
        f"found {describe(found)}; check the security options"
    )
    return ConnectorError(message)


def _tell(context: Context, options: dict[str, Any], found: Exception) -> None:
    message = "%s: no broker at %s yet, found %s; trying again"
    logger.warning(message, context.name, options["bootstrap_servers"], describe(found))


async def _refusal(options: dict[str, Any]) -> Exception | None:
    """Return why no broker lets us in, which the driver only logs; None if one does."""
    security = {name: options[name] for name in options if name != "bootstrap_servers"}
    found: Exception | None = None
    for server in options["bootstrap_servers"].split(","):
        address = urlsplit(f"//{server.strip()}")
        try:
            await try_connecting(address.hostname or "", address.port or DEFAULT_PORT, **security)
        except (OSError, KafkaError) as error:
            found = error
        else:
            return None
    return found


def describe(error: BaseException) -> str:
    """Return an error in a few words; of one that only wraps another one, the other one."""
    if type(error) is KafkaError and error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__} {error}".strip()


def unknown_topics(context: Context, topics: Iterable[str]) -> ConnectorError:
    """Return the error about topics that do not exist."""
    message = (
        f"{context.name}: expected the topic {', '.join(sorted(topics))}, found none of this name; "
        "create it or check the name, and the permission to see it"
    )
    return ConnectorError(message)


def gave_up(declared: Connection, context: Context, faults: Faults) -> ConnectorError:
    """Return the error about brokers that were away for too long."""
    message = (
        f"{context.name}: expected {declared.bootstrap_servers} to be back within "
        f"{declared.retry_for:g} s, found {faults.retrying() or 'no answer'}; "
        "check the brokers, or raise retry_for"
    )
    return ConnectorError(message)


async def close_consumer(consumer: AIOKafkaConsumer, *, in_a_hurry: bool = False) -> None:
    """Leave the group and disconnect; leaves no task behind, whatever the broker does."""
    await _close(consumer, in_a_hurry)


async def close_producer(producer: AIOKafkaProducer, *, in_a_hurry: bool = False) -> None:
    """Disconnect, delivering nothing more; leaves no task behind, whatever the broker does."""
    fail_waiting(producer, ConnectorError("closed"))
    await _close(producer, in_a_hurry)
    transaction_error(producer)  # else asyncio logs that nobody looked


async def _close(owner: AIOKafkaConsumer | AIOKafkaProducer, in_a_hurry: bool) -> None:
    """Let a client stop within a deadline, then cancel its tasks that are still running.

    The driver's own stop ends half-way if a background task of it is cancelled at the wrong
    moment, or waits for a broker that has gone; hence a task of its own.
    """
    client = KafkaClient(owner)
    with anyio.CancelScope(shield=True):
        await _within(HURRY_SECONDS if in_a_hurry else CLOSE_SECONDS, owner.stop())
        await _within(GRACE_SECONDS, client.close())  # ends the requests that tasks wait for
        await _cancel(tasks_of(owner))
        await _within(GRACE_SECONDS, client.close())  # what they have connected meanwhile


async def start(starting: Coroutine[Any, Any, None]) -> None:
    """Await the start of a client, or a part of it.

    Cancelling the driver while it waits for its first metadata leaks the connection, so it gets a
    moment to come to an end by itself.
    """
    task = asyncio.ensure_future(starting)
    try:
        await asyncio.wait([task])
    finally:
        with anyio.CancelScope(shield=True):
            await asyncio.wait([task], timeout=GRACE_SECONDS)
            await _cancel([task])
    task.result()


async def _within(seconds: float, coroutine: Coroutine[Any, Any, None]) -> None:
    task = asyncio.ensure_future(coroutine)
    await asyncio.wait([task], timeout=seconds)
    await _cancel([task])


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    found = list(tasks)
    for task in found:
        task.cancel()
    await asyncio.gather(*found, return_exceptions=True)

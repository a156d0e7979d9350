"""What readers and writers share: connecting within a deadline, and closing without a trace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from itertools import chain
from typing import Any

import anyio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer  # type: ignore[import-untyped]
from aiokafka.client import AIOKafkaClient  # type: ignore[import-untyped]
from aiokafka.conn import collect_hosts, create_conn  # type: ignore[import-untyped]
from aiokafka.errors import KafkaConnectionError, KafkaError  # type: ignore[import-untyped]
from anyio import to_thread

from streamflow.errors import ConnectorError
from streamflow.nodes import Context
from streamflow_connectors.kafka_options import Connection

CLOSE_SECONDS = 5.0
"""How long a client may take to say goodbye; after that its tasks are cancelled."""

GRACE_SECONDS = 0.5
"""How long a task of the driver may take to end by itself before it is cancelled."""

REQUEST_TIMEOUT_MS = 30_000

COORDINATOR_TASKS = (
    "_coordination_task",
    "_heartbeat_task",
    "_commit_refresh_task",
    "_reset_committed_task",
)


async def client_options(declared: Connection, context: Context) -> dict[str, Any]:
    """Return aiokafka's options for a client.

    Raises:
        ConnectorError: The event loop is not asyncio's, or a certificate cannot be read.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        message = (
            f"{context.name}: expected the event loop of asyncio, found another one; "
            "run the graph on asyncio, which Kafka's driver is written for"
        )
        raise ConnectorError(message) from None
    options = await to_thread.run_sync(declared.client_options, context)
    return {**options, "request_timeout_ms": REQUEST_TIMEOUT_MS}


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
            try:
                yield
            except KafkaConnectionError:
                found = await _refusal(options)
                message = (
                    f"{context.name}: expected to connect to {declared.bootstrap_servers}, "
                    f"found {found}; check bootstrap_servers, the security options "
                    "and that a broker runs there"
                )
                raise ConnectorError(message) from None
    except TimeoutError:
        message = (
            f"{context.name}: expected {declared.bootstrap_servers} to answer within "
            f"{limit:g} s, found it did not; check bootstrap_servers "
            "and the security options, or raise connect_timeout"
        )
        raise ConnectorError(message) from None
    except KafkaError as error:
        message = (
            f"{context.name}: expected {declared.bootstrap_servers} to let it in, "
            f"found {describe(error)}; check names and permissions"
        )
        raise ConnectorError(message) from error


async def _refusal(options: dict[str, Any]) -> str:
    """Return why no broker lets us in, which the driver only logs."""
    found = "no broker"
    for host, port, _ in collect_hosts(options["bootstrap_servers"]):
        security = {name: options[name] for name in options if name != "bootstrap_servers"}
        try:
            connection = await create_conn(host, port, **security)
        except (OSError, KafkaError) as error:
            found = describe(error)
        else:
            await connection.close()
    return found


def describe(error: BaseException) -> str:
    """Return an error in a few words."""
    return f"{type(error).__name__} {error}".strip()


def unknown_topics(context: Context, topics: Iterable[str]) -> ConnectorError:
    """Return the error about topics that do not exist."""
    message = (
        f"{context.name}: expected the topic {', '.join(sorted(topics))}, found none of this name; "
        "create it or check the name, and the permission to see it"
    )
    return ConnectorError(message)


async def close_consumer(consumer: AIOKafkaConsumer) -> None:
    """Leave the group and disconnect; leaves no task behind, whatever the broker does."""

    def parts() -> list[asyncio.Task[Any] | None]:
        coordinator, fetcher = consumer._coordinator, consumer._fetcher
        return [
            *(getattr(coordinator, name, None) for name in COORDINATOR_TASKS),
            getattr(fetcher, "_fetch_task", None),
            *getattr(fetcher, "_pending_tasks", ()),
        ]

    await _close(consumer.stop(), parts, consumer._client)


async def close_producer(producer: AIOKafkaProducer) -> None:
    """Disconnect, delivering nothing more; leaves no task behind, whatever the broker does."""
    accumulator = producer._message_accumulator
    accumulator.fail_all(ConnectorError("closed"))
    for batch in [*chain(*accumulator._batches.values()), *accumulator._pending_batches]:
        for future in (batch.future, batch._drain_waiter):
            if future.done():
                future.exception()  # else asyncio logs that nobody looked
    await _close(producer.stop(), lambda: [producer._sender.sender_task], producer.client)


async def _close(
    stop: Coroutine[Any, Any, None],
    parts: Callable[[], list[asyncio.Task[Any] | None]],
    client: AIOKafkaClient,
) -> None:
    """Let a client stop within a deadline, then cancel its parts that are still running.

    The driver's own stop ends half-way if a background task of it is cancelled at the wrong
    moment, or waits for a broker that has gone; hence a task of its own.
    """
    with anyio.CancelScope(shield=True):
        await _within(CLOSE_SECONDS, stop)
        await _within(GRACE_SECONDS, client.close())  # ends the requests that parts wait for
        await _cancel(parts())
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


async def _cancel(tasks: Iterable[asyncio.Task[Any] | None]) -> None:
    found = [task for task in tasks if task is not None]
    for task in found:
        task.cancel()
    await asyncio.gather(*found, return_exceptions=True)

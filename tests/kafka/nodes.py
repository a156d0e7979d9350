"""Sources and sinks of a topic ``t``, opened by themselves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import anyio

from streamflow.contracts import Context
from streamflow.errors import ConnectorError
from streamflow.records import Batch, Partition
from streamflow_connectors.kafka import KafkaSink, KafkaSource
from streamflow_connectors.kafka.reader import KafkaReader
from streamflow_connectors.kafka.writer import KafkaWriter

PLACE = (("topic", "t"), ("partition", 0))


def source(address: str, topic: str = "t", **options: Any) -> KafkaSource:
    return KafkaSource(bootstrap_servers=address, topics=(topic,), **options)


@asynccontextmanager
async def reading(address: str, **options: Any) -> AsyncIterator[KafkaReader]:
    async with source(address, **options).open(Context("in")) as reader:
        assert isinstance(reader, KafkaReader)
        yield reader


@asynccontextmanager
async def writing(
    address: str, context: Context | None = None, **options: Any
) -> AsyncIterator[KafkaWriter]:
    declared = KafkaSink(bootstrap_servers=address, inputs=("in",), **{"topic": "t", **options})
    async with declared.open(context or Context("out")) as writer:
        assert isinstance(writer, KafkaWriter)
        yield writer


def batch(*values: int) -> Batch:
    """Return records that come from partition 0 of the topic, from its start."""
    return Batch(list(values), [Partition("in", PLACE)] * len(values), range(len(values)))


async def receive(reader: KafkaReader) -> tuple[list[int], dict[Partition, int]]:
    """Return the next records, and where their partitions go on."""
    while True:
        fetch = await reader.receive()
        if len(fetch.batch):
            return fetch.batch.rows(), dict(fetch.ends)


async def wait_for(address: str, topic: str, value: int) -> None:
    """Wait until a topic holds a value."""
    values: list[int] = []
    with anyio.fail_after(60):
        async with reading(address, topic=topic) as reader:
            while value not in values:
                values, _ = await receive(reader)


async def error_of(trying: Coroutine[Any, Any, None]) -> str:
    """Return what a connector's error says, nothing if there is none; it must come to an end."""
    with anyio.fail_after(60):
        try:
            await trying
        except ConnectorError as error:
            return str(error)
    return ""

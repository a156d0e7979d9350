"""An open Redis sink: many entries in one exchange, each with an answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio.lowlevel

from streamflow.codecs.values import dump_json, load_json
from streamflow.contracts import Context, Writer
from streamflow.records import Batch, Rejected, split_rejected
from streamflow_connectors.network.reading import joined_causes
from streamflow_connectors.network.routes import FromField, texts
from streamflow_connectors.network.writing import RetryingWriter
from streamflow_connectors.redis.connection import RedisLink, connected
from streamflow_connectors.redis.entries import KEY, TIME
from streamflow_connectors.redis.options import RedisSinkOptions

MOST_RECORDS: Final = 500
"""Of one exchange; so many may come twice if the connection is lost in it."""

Fields = dict[Any, Any]


@asynccontextmanager
async def open_writer(sink: RedisSinkOptions, context: Context) -> AsyncIterator[Writer]:
    """Connect; disconnect when the block is left."""
    async with connected(sink, context) as link:
        yield RedisWriter(link, sink, context)


class RedisWriter(RetryingWriter):
    """Adds entries; see `contracts.Writer`. What is written is in the server's memory."""

    def __init__(self, link: RedisLink, sink: RedisSinkOptions, context: Context) -> None:
        super().__init__(context, link.retries)
        self._client = link.client
        self._sink = sink
        self._codec = sink.format.codec()

    async def write(self, batch: Batch) -> Rejected | None:
        """Add entries, waiting for the answers; return what cannot be written.

        Raises:
            ConnectorError: The server refuses, or is away for too long.
        """
        await anyio.lowlevel.checkpoint()
        encoded = self._codec.encode(batch)
        good, _ = split_rejected(batch, encoded.causes)
        streams, unnamed = self._streams(good)
        entries: list[tuple[str, Fields]] = []
        for index, (stream, fields) in enumerate(
            zip(streams, self._fields(good, encoded.payloads), strict=True)
        ):
            if index in unnamed:
                continue
            if not fields:
                unnamed[index] = (
                    "expected a record with fields, since there is no payload, found none"
                )
                continue
            entries.append((stream, fields))
        for start in range(0, len(entries), MOST_RECORDS):
            part = entries[start : start + MOST_RECORDS]
            await self._retries.run(lambda part=part: self._add(part))  # type: ignore[misc]
            self._num_sent += len(part)
        return split_rejected(batch, joined_causes(len(batch), encoded.causes, unnamed))[1]

    def _streams(self, batch: Batch) -> tuple[Sequence[str], dict[int, str]]:
        stream = self._sink.stream
        if isinstance(stream, FromField):
            return texts(batch, stream.field, "the name of its stream")
        return [stream] * len(batch), {}

    def _fields(self, batch: Batch, payloads: Sequence[bytes]) -> list[Fields]:
        if self._sink.payload is None:
            return [_flat(payload) for payload in payloads]
        empty: Sequence[None] = [None] * len(batch)
        described = zip(payloads, batch.keys or empty, batch.timestamps_ms or empty, strict=True)
        name = self._sink.payload.encode()
        return [
            {
                name: payload,
                **({} if key is None else {KEY: key if isinstance(key, bytes) else str(key)}),
                **({} if time is None else {TIME: time}),
            }
            for payload, key, time in described
        ]

    async def _add(self, entries: Sequence[tuple[str, Fields]]) -> None:
        async with self._client.pipeline(transaction=False) as pipeline:
            for stream, fields in entries:
                pipeline.xadd(stream, fields, maxlen=self._sink.max_length, approximate=True)
            await pipeline.execute()


def _flat(payload: bytes) -> Fields:
    """Return a record's fields as those of an entry: text as it is, all else as JSON."""
    value = load_json(payload)
    if not isinstance(value, dict):
        return {}
    return {name: _cell(entry) for name, entry in value.items()}


def _cell(entry: Any) -> Any:
    if entry is None:
        return ""
    if isinstance(entry, str | int | float) and not isinstance(entry, bool):
        return entry
    return dump_json(entry)

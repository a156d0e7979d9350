"""Redis streams as sources and sinks.

Opening one imports the driver, redis-py, which runs on asyncio only.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from streamflow.codecs.formats import CsvFormat
from streamflow.contracts import Codec, Context, Reader, Writer
from streamflow.nodes.declarations import Sink, Source
from streamflow_connectors.redis.options import RedisSinkOptions, RedisSourceOptions


class RedisSource(RedisSourceOptions, Source):
    """Reads streams, each entry a record.

    Without a group it reads all entries, from the start or the end in every run, or from where a
    checkpoint says. In a group entries are shared out among its consumers, and acknowledged once
    all that came of them is delivered; a consumer that starts again under the same name first gets
    what it has not acknowledged.

    An entry's fields ``key`` and ``time`` (milliseconds since 1970) are key and time of the record;
    without a time it is that of the entry's id. Positions count milliseconds of the id times 2^20,
    plus its second part.
    """

    @property
    def only_scalars(self) -> bool:
        """Whether no field is an array: cells of csv, and fields of entries, are single values."""
        return self.payload is None or isinstance(self.format, CsvFormat)

    @property
    def keeps_positions(self) -> bool:
        """Whether a later run goes on where this one has finished."""
        return self.group is not None

    @property
    def rereads(self) -> bool:
        """Whether it can go on at a checkpoint: not where a group has shared entries out."""
        return self.group is None

    def decoder(self, folder: Path, position: Mapping[str, str | int]) -> Codec:
        """Return what decodes again the value that stood at ``position``."""
        return self.format.codec()

    def open(self, context: Context) -> AbstractAsyncContextManager[Reader]:
        """Connect, make the group, and give a reader until the context is left.

        Raises:
            ConnectorError: The server refuses or is away for too long, a certificate cannot be
                read, or the event loop is not asyncio's.
        """
        from streamflow_connectors.redis.reader import open_reader  # imports the driver

        return open_reader(self, context)


class RedisSink(RedisSinkOptions, Sink):
    """Adds an entry to a stream for each record, in order.

    Key and time of the record are its fields ``key`` and ``time``; headers are not kept. Entries
    may come twice where a connection is lost. A record is rejected where the field that names its
    stream is missing or no text.
    """

    def open(self, context: Context) -> AbstractAsyncContextManager[Writer]:
        """Connect, and give a writer until the context is left.

        Raises:
            ConnectorError: The server refuses or is away for too long, a certificate cannot be
                read, or the event loop is not asyncio's.
        """
        from streamflow_connectors.redis.writer import open_writer  # imports the driver

        return open_writer(self, context)

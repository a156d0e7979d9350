"""Redis streams as sources and sinks.

Here are the declarations; what they open lies in `reader` and `writer`, which import
the driver. The driver, redis-py, runs on asyncio only.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationInfo, field_validator

from streamflow.codecs.formats import Codec, CsvFormat, FormatField, JsonFormat
from streamflow.contracts import Context, Reader, Writer
from streamflow.nodes.declarations import Sink, Source
from streamflow_connectors.network.addresses import Address
from streamflow_connectors.network.routes import FromField

REQUIRES = {"redis": "streamflow-online[redis]", "stamina": "streamflow-online[redis]"}

_DATABASE = re.compile(r"/?|/[0-9]+")


class RedisOptions(Address):
    """What sources and sinks share."""

    schemes: ClassVar[tuple[str, str]] = ("redis", "rediss")
    ports: ClassVar[tuple[int, int]] = (6379, 6379)

    payload: str | None = Field(
        "value",
        min_length=1,
        description="Field of an entry that holds the value, in the format; none: the fields of "
        "an entry are those of the record.",
    )
    format: FormatField = Field(
        default_factory=JsonFormat, description="How values become bytes and back."
    )

    @field_validator("url")
    @classmethod
    def _check_database(cls, url: str) -> str:
        parts = urlsplit(url)
        if not _DATABASE.fullmatch(parts.path) or parts.query:
            message = f"expected redis://host:port/database, found {parts.path or parts.query}"
            raise ValueError(message)
        return url

    @field_validator("format")
    @classmethod
    def _check_format(cls, declared: object, info: ValidationInfo) -> object:
        if info.data.get("payload", "") is None and declared != JsonFormat():
            message = "expected no format without a payload that is written in it; remove one"
            raise ValueError(message)
        return declared

    @property
    def database(self) -> int:
        """The number of the database."""
        return int(urlsplit(self.url).path.strip("/") or 0)


class RedisSource(RedisOptions, Source):
    """Reads streams, each entry a record.

    Without a group it reads all entries, from the start or the end in every run, or from where a
    checkpoint says. In a group entries are shared out among its consumers, and acknowledged once
    all that came of them is delivered; a consumer that starts again under the same name first gets
    what it has not acknowledged.

    An entry's fields ``key`` and ``time`` (milliseconds since 1970) are key and time of the record;
    without a time it is that of the entry's id. Positions count milliseconds of the id times 2^20,
    plus its second part.
    """

    type: Literal["redis"] = "redis"
    requires: ClassVar[dict[str, str]] = REQUIRES
    incidental: ClassVar[frozenset[str]] = frozenset({"stop_at_end", "consumer"})

    streams: tuple[str, ...] = Field(min_length=1, description="Streams to read.")
    group: str | None = Field(
        None, min_length=1, description="Consumer group, which is made if it is not there."
    )
    consumer: str | None = Field(
        None,
        min_length=1,
        description="Name of this consumer in the group, another one for each; by default that of "
        "the host.",
    )
    start: Literal["earliest", "latest"] = Field(
        "earliest", description="Where to begin while nothing is known of a stream."
    )
    stop_at_end: bool = Field(
        False, description="End where the streams end when the run starts, instead of waiting."
    )

    @field_validator("consumer")
    @classmethod
    def _check_consumer(cls, consumer: str | None, info: ValidationInfo) -> str | None:
        if consumer is not None and info.data.get("group") is None:
            message = "expected a group with it, found none; remove it, or add group"
            raise ValueError(message)
        return consumer

    @property
    def consumer_name(self) -> str:
        """The name of this consumer."""
        return self.consumer or socket.gethostname()

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


class RedisSink(RedisOptions, Sink):
    """Adds an entry to a stream for each record, in order.

    Key and time of the record are its fields ``key`` and ``time``; headers are not kept. Entries
    may come twice where a connection is lost. A record is rejected where the field that names its
    stream is missing or no text.
    """

    type: Literal["redis"] = "redis"
    requires: ClassVar[dict[str, str]] = REQUIRES

    stream: Annotated[str, Field(min_length=1)] | FromField = Field(
        description="Stream to write to; {field: name} for the one that a field of each record "
        "names."
    )
    max_length: int | None = Field(
        None, ge=1, description="Entries that a stream keeps, about; the oldest go first."
    )

    def open(self, context: Context) -> AbstractAsyncContextManager[Writer]:
        """Connect, and give a writer until the context is left.

        Raises:
            ConnectorError: The server refuses or is away for too long, a certificate cannot be
                read, or the event loop is not asyncio's.
        """
        from streamflow_connectors.redis.writer import open_writer  # imports the driver

        return open_writer(self, context)

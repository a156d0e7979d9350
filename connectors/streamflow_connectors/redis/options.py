"""What Redis sources and sinks declare: where the server is, and which streams."""

from __future__ import annotations

import re
import socket
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationInfo, field_validator

from streamflow.codecs.formats import FormatField, JsonFormat
from streamflow_connectors.network.addresses import Address
from streamflow_connectors.network.routes import FromField

REQUIRES = {"redis": "streamflow-online[redis]", "stamina": "streamflow-online[redis]"}

_DATABASE = re.compile(r"/?|/[0-9]+")


class RedisOptions(Address):
    """What sources and sinks share."""

    type: Literal["redis"] = "redis"
    requires: ClassVar[dict[str, str]] = REQUIRES
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


class RedisSourceOptions(RedisOptions):
    """What to read, and where to begin."""

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


class RedisSinkOptions(RedisOptions):
    """Where to write."""

    stream: Annotated[str, Field(min_length=1)] | FromField = Field(
        description="Stream to write to; {field: name} for the one that a field of each record "
        "names."
    )
    max_length: int | None = Field(
        None, ge=1, description="Entries that a stream keeps, about; the oldest go first."
    )

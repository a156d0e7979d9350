"""ZeroMQ sockets as sources and sinks.

Here are the declarations; what they open lies in `reader` and `writer`, which import
the driver.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from streamflow.codecs.formats import CsvFormat, FormatField, JsonFormat
from streamflow.contracts import Codec, Context, Reader, Writer
from streamflow.nodes.declarations import Sink, Source
from streamflow_connectors.zeromq.options import REQUIRES, Endpoints


class ZeroMqSource(Endpoints, Source):
    """Reads what peers push or publish, each record at most once.

    Takes what a ZeroMQ sink sends, with key, timestamp and headers, and counts what is missing
    between the numbers of each sender. Of any other sender it takes messages of one frame, the
    value; with ``sub`` also those of two, a topic and the value, where the topic becomes the key.
    """

    type: Literal["zeromq"] = "zeromq"
    requires: ClassVar[dict[str, str]] = REQUIRES
    incidental: ClassVar[frozenset[str]] = frozenset({"end_after"})

    socket: Literal["pull", "sub"] = Field(
        description="pull from push, which shares records out; or sub from pub, which sends each "
        "subscriber all of its topics."
    )
    topics: tuple[str, ...] = Field(
        (),
        description="Beginnings of the topics to subscribe to, with sub; without any, all of them.",
    )
    format: FormatField = Field(
        default_factory=JsonFormat, description="How values become bytes and back."
    )
    end_after: float | None = Field(
        None, gt=0, description="Seconds without a record after which the stream ends."
    )

    @field_validator("topics")
    @classmethod
    def _check_topics(cls, topics: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if topics and info.data.get("socket") == "pull":
            message = "expected topics with socket: sub, found pull; remove them, or use sub"
            raise ValueError(message)
        return topics

    @property
    def only_scalars(self) -> bool:
        """Whether no field is an array: cells of csv are single values."""
        return isinstance(self.format, CsvFormat)

    def decoder(self, folder: Path, position: Mapping[str, str | int]) -> Codec:
        """Return what decodes again the value that stood at ``position``."""
        return self.format.codec()

    def watching(self) -> ZeroMqSource | None:
        """Return it if it subscribes; what one puller gets no other one does."""
        return self if self.socket == "sub" else None

    def open(self, context: Context) -> AbstractAsyncContextManager[Reader]:
        """Listen or connect, and give a reader until the context is left.

        Raises:
            ConnectorError: An endpoint is taken or cannot be used.
        """
        from streamflow_connectors.zeromq.reader import open_reader  # imports the driver

        return open_reader(self, context)


class ZeroMqSink(Endpoints, Sink):
    """Pushes or publishes records, in order, with key, timestamp and headers.

    A message has a frame for the header and one for the value; with ``pub`` the topic comes before
    them. Nobody confirms what arrives. ``push`` waits while no peer has room, ``pub`` drops what a
    subscriber has no room for; receivers count it by the numbers of the records.

    Keys other than text, bytes and numbers are written as text.
    """

    type: Literal["zeromq"] = "zeromq"
    requires: ClassVar[dict[str, str]] = REQUIRES

    socket: Literal["push", "pub"] = Field(
        description="push, which shares records out among pulling peers; or pub, which sends all "
        "to each subscriber."
    )
    topic: str = Field("", description="Topic to publish under, with pub.")
    format: FormatField = Field(
        default_factory=JsonFormat, description="How values become bytes and back."
    )
    numbered: bool = Field(
        True,
        description="Whether records are numbered, so that a receiver counts what is lost. Turn it "
        "off where several receivers share out what is pushed: each would miss some numbers.",
    )
    linger: float = Field(
        10.0,
        ge=0,
        le=86_400,
        description="Seconds that closing waits for peers to take what is on its way.",
    )

    @field_validator("topic")
    @classmethod
    def _check_topic(cls, topic: str, info: ValidationInfo) -> str:
        if topic and info.data.get("socket") == "push":
            message = "expected a topic with socket: pub, found push; remove it, or use pub"
            raise ValueError(message)
        return topic

    @property
    def confirms(self) -> bool:
        """Whether it hears what arrives: never."""
        return False

    def open(self, context: Context) -> AbstractAsyncContextManager[Writer]:
        """Listen or connect, and give a writer until the context is left.

        Raises:
            ConnectorError: An endpoint is taken or cannot be used.
        """
        from streamflow_connectors.zeromq.writer import open_writer  # imports the driver

        return open_writer(self, context)

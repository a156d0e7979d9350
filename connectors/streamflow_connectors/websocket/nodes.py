"""WebSockets as sources and sinks.

Here are the declarations; what they open lies in `ends`, which imports the driver. The
driver, websockets, runs on asyncio only.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from streamflow.codecs.formats import Codec, CsvFormat, FormatField, JsonFormat
from streamflow.contracts import Context, Reader, Writer
from streamflow.nodes.declarations import Sink, Source
from streamflow.nodes.sizes import SizeField
from streamflow_connectors.network.addresses import WebAddress

REQUIRES = {"websockets": "streamflow-online[websocket]", "stamina": "streamflow-online[websocket]"}


class WebSocketOptions(WebAddress):
    """What sources and sinks share."""

    schemes: ClassVar[tuple[str, str]] = ("ws", "wss")

    format: FormatField = Field(
        default_factory=JsonFormat, description="How values become bytes and back."
    )
    first: tuple[str, ...] = Field(
        (), description="Messages to begin each connection with, such as a subscription."
    )


class WebSocketSource(WebSocketOptions, Source):
    """Reads the messages that a server sends, each record at most once.

    When the connection is lost it connects again; what the server has sent meanwhile is lost.
    """

    type: Literal["websocket"] = "websocket"
    requires: ClassVar[dict[str, str]] = REQUIRES
    incidental: ClassVar[frozenset[str]] = frozenset({"end_after"})

    max_bytes: SizeField = Field(
        16 * 2**20, description="Bytes that a message may have; a larger one is an error."
    )
    end_after: float | None = Field(
        None, gt=0, description="Seconds without a record after which the stream ends."
    )

    @property
    def only_scalars(self) -> bool:
        """Whether no field is an array: cells of csv are single values."""
        return isinstance(self.format, CsvFormat)

    def decoder(self, folder: Path, position: Mapping[str, str | int]) -> Codec:
        """Return what decodes again the value that stood at ``position``."""
        return self.format.codec()

    def open(self, context: Context) -> AbstractAsyncContextManager[Reader]:
        """Connect in the background, and give a reader until the context is left.

        Raises:
            ConnectorError: The certificates cannot be read, or the event loop is not asyncio's.
        """
        from streamflow_connectors.websocket.ends import open_reader  # imports the driver

        return open_reader(self, context)


class WebSocketSink(WebSocketOptions, Sink):
    """Sends a message for each record: text where the format is text, else binary.

    Nobody confirms what arrives. When the connection is lost it connects again, and goes on with
    the message that could not be sent.
    """

    type: Literal["websocket"] = "websocket"
    requires: ClassVar[dict[str, str]] = REQUIRES

    linger: float = Field(
        10.0,
        ge=0,
        description="Seconds that closing waits for the server to take what is on its way.",
    )

    @property
    def confirms(self) -> bool:
        """Whether it hears what arrives: never."""
        return False

    def open(self, context: Context) -> AbstractAsyncContextManager[Writer]:
        """Connect, and give a writer until the context is left.

        Raises:
            ConnectorError: The server refuses or is away for too long, the certificates cannot be
                read, or the event loop is not asyncio's.
        """
        from streamflow_connectors.websocket.ends import open_writer  # imports the driver

        return open_writer(self, context)

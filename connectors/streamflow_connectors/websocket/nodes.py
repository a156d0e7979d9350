"""WebSockets as sources and sinks.

Opening one imports the driver, websockets, which runs on asyncio only.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from streamflow.codecs.formats import CsvFormat
from streamflow.contracts import Codec, Context, Reader, Writer
from streamflow.nodes.declarations import Sink, Source
from streamflow_connectors.websocket.options import WebSocketSinkOptions, WebSocketSourceOptions


class WebSocketSource(WebSocketSourceOptions, Source):
    """Reads the messages that a server sends, each record at most once.

    When the connection is lost it connects again; what the server has sent meanwhile is lost.
    """

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


class WebSocketSink(WebSocketSinkOptions, Sink):
    """Sends a message for each record: text where the format is text, else binary.

    Nobody confirms what arrives. When the connection is lost it connects again, and goes on with
    the message that could not be sent.
    """

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

"""ZeroMQ sockets as sources and sinks; opening one imports the driver."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from streamflow.codecs.formats import CsvFormat
from streamflow.contracts import Codec, Context, Reader, Writer
from streamflow.nodes.declarations import Sink, Source
from streamflow_connectors.zeromq.options import ZeroMqSinkOptions, ZeroMqSourceOptions


class ZeroMqSource(ZeroMqSourceOptions, Source):
    """Reads what peers push or publish, each record at most once.

    Takes what a ZeroMQ sink sends, with key, timestamp and headers, and counts what is missing
    between the numbers of each sender. Of any other sender it takes messages of one frame, the
    value; with ``sub`` also those of two, a topic and the value, where the topic becomes the key.
    """

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


class ZeroMqSink(ZeroMqSinkOptions, Sink):
    """Pushes or publishes records, in order, with key, timestamp and headers.

    A message has a frame for the header and one for the value; with ``pub`` the topic comes before
    them. Nobody confirms what arrives. ``push`` waits while no peer has room, ``pub`` drops what a
    subscriber has no room for; receivers count it by the numbers of the records.

    Keys other than text, bytes and numbers are written as text.
    """

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

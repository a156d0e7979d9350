"""Server-sent events, and pages that are asked for again and again.

Opening one imports the driver, httpx.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from streamflow.codecs.formats import CsvFormat
from streamflow.contracts import Codec, Context, Reader
from streamflow.nodes.declarations import Source
from streamflow_connectors.http.options import HttpSourceOptions


class HttpSource(HttpSourceOptions, Source):
    """Reads server-sent events as they come, or a page again and again.

    An event's data is a record, whose headers ``event`` and ``id`` tell its type and id; after a
    lost connection the server is told the last id, so that it can send what was missed. Of a page
    that has not changed, which its headers or its content show, nothing is read again. Each record
    is read at most once.
    """

    @property
    def only_scalars(self) -> bool:
        """Whether no field is an array: cells of csv are single values."""
        return isinstance(self.format, CsvFormat)

    def decoder(self, folder: Path, position: Mapping[str, str | int]) -> Codec:
        """Return what decodes again the value that stood at ``position``."""
        return self.format.codec()

    def open(self, context: Context) -> AbstractAsyncContextManager[Reader]:
        """Connect, and give a reader until the context is left.

        Raises:
            ConnectorError: The certificates cannot be read. What the server refuses is raised by
                the reader.
        """
        from streamflow_connectors.http.reader import open_reader  # imports the driver

        return open_reader(self, context)

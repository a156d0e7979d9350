"""Files as sinks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Literal

from anyio import to_thread
from pydantic import Field

from streamflow.contracts import Context, Writer
from streamflow.errors import ConnectorError, Problem
from streamflow.nodes import Sink
from streamflow.plugins import require
from streamflow_connectors.files.options import FileOptions
from streamflow_connectors.files.writer import FileWriter, open_writer


class FileSink(FileOptions, Sink):
    """Writes the values of records to a file; folders above it are made.

    A file that is there is overwritten, unless ``mode`` is ``append``: then a last record without
    an end, as a crash leaves it, is ended first. A run that goes on from a checkpoint cuts the file
    back to it and goes on there, in either mode.
    """

    type: Literal["file"] = "file"
    mode: Literal["overwrite", "append"] = Field(
        "overwrite", description="What to do with a file that is there."
    )

    @property
    def cuts_back(self) -> bool:
        """Whether what follows a checkpoint can be cut off: of files, not of pipes."""
        return self.may_be_file

    def deep_problems(self, folder: Path) -> Iterator[Problem]:
        """Yield the packages that it lacks."""
        yield from self.extra_problems()

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[Writer]:
        """Open the file, and give a writer.

        Raises:
            ConnectorError: It cannot be written, or is shorter than a checkpoint says.
        """
        require(self.extra_requires(), where=context.name)
        writer = await to_thread.run_sync(self._writer, context)
        try:
            yield writer
        except BaseException:
            with suppress(ConnectorError):  # the first error is the one to tell
                await writer.aclose()
            raise
        await writer.aclose()

    def adding(self) -> FileSink:
        """Return the sink as one that adds to the file."""
        return self.model_copy(update={"mode": "append"})

    def _writer(self, context: Context) -> FileWriter:
        is_appended = self.mode == "append"
        return open_writer(self.path, self.resolved_format, context, is_appended=is_appended)

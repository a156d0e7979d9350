"""Files as sinks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from fnmatch import fnmatchcase
from os.path import normpath
from pathlib import Path
from typing import Literal

from anyio import to_thread
from pydantic import Field

from streamflow.contracts import Context, Writer
from streamflow.errors import ConnectorError, Problem
from streamflow.nodes import Sink, Source
from streamflow.plugins import require
from streamflow_connectors.files.options import FileOptions
from streamflow_connectors.files.source import FileSource
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

    def delivery_problems(
        self,
        sources: Mapping[str, Source],
        sinks: Mapping[str, Sink],
        *,
        is_ordered: bool = True,
        is_checkpointed: bool = True,
    ) -> Iterator[Problem]:
        """Yield the nodes whose file it would write over, as far as their paths tell.

        Args:
            sources: Of the whole graph, by name.
            sinks: Likewise, without the one of the dead letters.
            is_ordered: Not looked at.
            is_checkpointed: Not looked at.
        """
        if self.path == "-":
            return
        for name, source in sources.items():
            if isinstance(source, FileSource) and _is_read(self.path, source.path):
                message = f"expected a file that nothing reads, found {self.path}, which the "
                yield Problem(("path",), f"{message}source {name} reads; write to another one")
        for name, sink in sinks.items():
            if sink is self:
                break  # of two sinks, the second is told of the first
            if isinstance(sink, FileSink) and normpath(sink.path) == normpath(self.path):
                message = f"expected a file of its own, found {self.path}, which the sink {name} "
                yield Problem(
                    ("path",), f"{message}writes; let one sink receive from all its inputs"
                )

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


def _is_read(path: str, pattern: str) -> bool:
    """Return whether a source of a pattern reads a path, each step of it as glob takes it."""
    names, steps = normpath(path).split("/"), normpath(pattern).split("/")
    is_same = names == steps
    return is_same or (len(names) == len(steps) and all(map(fnmatchcase, names, steps)))

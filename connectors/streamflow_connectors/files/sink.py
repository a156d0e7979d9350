"""Files as sinks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from fnmatch import fnmatchcase
from functools import partial
from os.path import normpath
from typing import Any, Final, Literal

import anyio
from anyio import to_thread
from pydantic import Field, model_validator

from streamflow.contracts import Context, Writer
from streamflow.errors import ConnectorError, GraphError, Problem
from streamflow.nodes.declarations import Declaration, Sink, Surroundings
from streamflow.nodes.plugins import require
from streamflow.nodes.units import SizeField, SpanField
from streamflow_connectors.files.options import FileOptions
from streamflow_connectors.files.parquet import ParquetFormat
from streamflow_connectors.files.source import FileSource
from streamflow_connectors.files.writing.encoding import cannot_write
from streamflow_connectors.files.writing.layout import FileLayout
from streamflow_connectors.files.writing.part import Lines
from streamflow_connectors.files.writing.parts import Kind, Parts
from streamflow_connectors.files.writing.parts_writer import PartsWriter, opened_parts
from streamflow_connectors.files.writing.writer import FileWriter, open_writer

_OF_PARTS: Final = ("rotate", "partition_by", "atomic")


class Rotation(Declaration):
    """When a file is finished and another one begun; whichever comes first."""

    size: SizeField | None = Field(
        None, description="Bytes of its records, before they are packed: a number, or 100MB."
    )
    every: SpanField | None = Field(
        None, description="Time since its first record: seconds, or 15m, 1h, 1d."
    )

    @model_validator(mode="after")
    def _check(self) -> Rotation:
        if self.size is None and self.every is None:
            message = "expected size or every, found neither; write {size: 100MB} or {every: 1h}"
            raise ValueError(message)
        return self


class FileSink(FileOptions, Sink):
    """Writes the values of records to a file; folders above it are made.

    A file that is there is overwritten, unless ``mode`` is ``append``: then a last record without
    an end, as a crash leaves it, is ended first. A run that goes on from a checkpoint cuts the file
    back to it and goes on there, in either mode; files that were begun after it are removed.
    A parquet file can neither be read before it is whole nor written on: they are numbered, have
    their name when they are whole, and another one is begun at each checkpoint.
    """

    type: Literal["file"] = "file"
    mode: Literal["overwrite", "append"] = Field(
        "overwrite", description="What to do with a file that is there."
    )
    rotate: Rotation | None = Field(
        None,
        description="When to begin another file, as size, every or both: {size: 100MB, every: 1h}. "
        "Files are numbered: scores-000001.jsonl.",
    )
    partition_by: str | None = Field(
        None,
        min_length=1,
        description="A field, each value of which has a folder of its own: city=Rome/scores.jsonl.",
    )
    atomic: bool = Field(
        False,
        description="Whether a file has its name only when it is whole, and with checkpoints safe; "
        "until then .part follows the name.",
    )
    open_files: int = Field(
        64, ge=1, description="With partition_by: files that may be open at once."
    )

    @model_validator(mode="after")
    def _check_files(self) -> FileSink:
        if self._has_parts and not self.may_be_file:
            name = next(name for name in _OF_PARTS if getattr(self, name))
            message = f"expected none with a pipe or device, found it with {self.path}; leave it "
            raise GraphError([Problem((name,), f"{message}out, or give the path of a file")])
        return self

    @property
    def _layout(self) -> FileLayout:
        is_whole = self.is_parquet  # none of its files can be read before it is, nor go on later
        return FileLayout(
            self.path,
            is_numbered=self.rotate is not None or is_whole,
            partition_by=self.partition_by,
            is_atomic=self.atomic or is_whole,
        )

    @property
    def _example(self) -> str:
        """The path of one of its files."""
        return self._layout.final(f"{self.partition_by}=x" if self.partition_by else "", 1)

    @property
    def _has_parts(self) -> bool:
        """Whether it writes several files, or shows only whole ones."""
        return self.is_parquet or any(getattr(self, name) for name in _OF_PARTS)

    @property
    def cuts_back(self) -> bool:
        """Whether what follows a checkpoint can be cut off: of files, not of pipes."""
        return self.may_be_file

    def delivery_problems(self, graph: Surroundings) -> Iterator[Problem]:
        """Yield the nodes whose file it would write over, and what parquet files would lose."""
        if self.path == "-":
            return
        if self.is_parquet and not graph.is_checkpointed:
            for name, source in graph.sources.items():
                if source.keeps_positions:
                    message = (
                        f"expected checkpoint with parquet, whose records wait in memory until a "
                        f"file is whole, found none, so that a crash loses what the source {name} "
                        f"counts as done; declare checkpoint"
                    )
                    yield Problem(("format",), message)
        for name, source in graph.sources.items():
            if isinstance(source, FileSource) and _is_read(self._example, source.path):
                message = f"expected a file that nothing reads, found {self.path}, which the "
                yield Problem(("path",), f"{message}source {name} reads; write to another one")
        for name, sink in graph.sinks.items():
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
        if self._has_parts:
            async with self._opened_parts(context) as parts:
                yield parts
            return
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

    @asynccontextmanager
    async def _opened_parts(self, context: Context) -> AsyncIterator[PartsWriter]:
        opening = partial(
            Parts,
            self._layout,
            self._kind(context),
            context,
            most_bytes=self.rotate.size if self.rotate else None,
            most_seconds=self.rotate.every if self.rotate else None,
            most_open=self.open_files,
            is_appended=self.mode == "append",
            now=anyio.current_time(),
        )
        try:
            parts = await to_thread.run_sync(opening)
        except (OSError, ValueError) as error:
            if isinstance(error, ConnectorError):
                raise
            raise cannot_write(context, self.path, error) from error
        async with opened_parts(parts, self.path, context) as writer:
            yield writer

    def _kind(self, context: Context) -> Callable[[Any], Kind]:
        declared = self.resolved_format
        if isinstance(declared, ParquetFormat):
            from streamflow_connectors.files.writing.parquet_writer import ParquetRows

            return partial(ParquetRows, declared, context)
        return partial(Lines, declared, context, self.path)

    def _writer(self, context: Context) -> FileWriter:
        is_appended = self.mode == "append"
        return open_writer(self.path, self.resolved_format, context, is_appended=is_appended)


def _is_read(path: str, pattern: str) -> bool:
    """Return whether a source of a pattern reads a path, each step of it as glob takes it."""
    names, steps = normpath(path).split("/"), normpath(pattern).split("/")
    is_same = names == steps
    return is_same or (len(names) == len(steps) and all(map(fnmatchcase, names, steps)))

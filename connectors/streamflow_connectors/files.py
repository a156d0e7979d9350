"""Files, and standard input and output: csv, json lines, msgpack, plain or gzipped."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Literal

from anyio import to_thread
from pydantic import Field, model_validator

from streamflow.codecs import Codec, CsvFormat, FileFormatField, Format, named_format
from streamflow.contracts import Context, Reader, Writer
from streamflow.errors import ConnectorError
from streamflow.nodes import Declaration, Sink, Source
from streamflow.plugins import FORMATS, registered
from streamflow_connectors.file_headers import csv_codec, has_header, read_header
from streamflow_connectors.file_reader import FileReader, find_paths
from streamflow_connectors.file_writer import FileWriter, open_writer


class FileOptions(Declaration):
    """Where the records lie, and how they are written."""

    path: str = Field(
        min_length=1,
        description="The file, - for standard input or output; .gz is unpacked or packed. A source "
        "takes a pattern such as logs/*.csv, too, and reads its files in order of name.",
    )
    format: FileFormatField | None = Field(
        None, description="How records are written; by default what the suffix says."
    )

    @model_validator(mode="after")
    def _check(self) -> FileOptions:
        if self.format is None and _suffix(self.path) not in registered(FORMATS):
            message = (
                f"expected a format, found none and a path that does not tell it, {self.path}; "
                f"set format"
            )
            raise ValueError(message)
        return self

    @property
    def resolved_format(self) -> Format:
        """The format, as declared or as the suffix says."""
        return self.format or named_format(_suffix(self.path))


class FileSource(FileOptions, Source):
    """Reads records from files; rows are counted from 1, without the header of a csv file.

    A run that goes on from a checkpoint leaves out the rows before it. Files that are new are read
    from their beginning, and so is what comes through a pipe.
    A file that is damaged, or cut short while it is read, ends the run with what is wrong and the
    last row that was read; once it is repaired, the run goes on there. That a byte within packed
    data is another one may show at the end of their gzip member only.
    """

    type: Literal["file"] = "file"

    @property
    def only_scalars(self) -> bool:
        """Whether no field is an array: cells of csv are single values."""
        return isinstance(self.resolved_format, CsvFormat)

    @property
    def rereads(self) -> bool:
        """Whether it can go on at a checkpoint: files can, pipes cannot."""
        return _may_be_file(self.path)

    def decoder(self, folder: Path, position: Mapping[str, str | int]) -> Codec:
        """Return what decodes again the row that stood at ``position``.

        Raises:
            ConnectorError: The file, whose first row names the columns, is gone.
        """
        declared = self.resolved_format
        if not has_header(declared):
            return declared.line_codec()
        path = str(position.get("path", self.path))
        found = "none"
        try:
            if (header := read_header(folder / path, declared)) is not None:
                return csv_codec(declared, header)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            found = getattr(error, "strerror", None) or str(error)
        message = (
            f"{path}: expected the row that names the columns, found {found}; bring the file back, "
            f"or name them as fields of the format"
        )
        raise ConnectorError(message)

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[Reader]:
        """Find the files; give a reader that opens one after the other.

        Raises:
            ConnectorError: There is none, or one is gone that a checkpoint knows of.
        """
        paths = await to_thread.run_sync(find_paths, self.path, context)
        reader = FileReader(paths, self.resolved_format, context)
        try:
            yield reader
        finally:
            reader.close()


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
        return _may_be_file(self.path)

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[Writer]:
        """Open the file, and give a writer.

        Raises:
            ConnectorError: It cannot be written, or is shorter than a checkpoint says.
        """
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


def _suffix(path: str) -> str:
    return Path(path.removesuffix(".gz")).suffix.removeprefix(".")


def _may_be_file(path: str) -> bool:
    """Say no where it shows that there is a pipe or a device; a relative path shows when opened."""
    full = Path(path)
    return path != "-" and not (full.is_absolute() and full.exists() and not full.is_file())

"""Files as sources."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

from anyio import to_thread
from pydantic import Field, model_validator

from streamflow.codecs.formats import CsvFormat
from streamflow.contracts import Codec, Context, Reader
from streamflow.errors import ConnectorError, GraphError, Problem
from streamflow.nodes.declarations import Source
from streamflow.nodes.plugins import require
from streamflow.operators.times import TimeUnit
from streamflow_connectors.files.headers import csv_codec, has_header, read_header
from streamflow_connectors.files.options import FileOptions
from streamflow_connectors.files.reading.following import FollowingReader
from streamflow_connectors.files.reading.listing import find_paths
from streamflow_connectors.files.reading.opened import OpenFile
from streamflow_connectors.files.reading.reader import FileReader, OpenedFile
from streamflow_connectors.files.stamp import Stamp
from streamflow_connectors.replay import AS_FAST_AS_POSSIBLE, RECORDED, PacedReader, PaceField


class FileSource(FileOptions, Source):
    """Reads records from files; rows are counted from 1, without the header of a csv file.

    A run that goes on from a checkpoint leaves out the rows before it. Files that are new are read
    from their beginning, and so is what comes through a pipe. With ``follow`` files are read on as
    they grow, are renamed or emptied, and appear; a last line waits for its end.
    A file that is damaged, or cut short while it is read, ends the run with what is wrong and the
    last row that was read; once it is repaired, the run goes on there. That a byte within packed
    data is another one may show at the end of their gzip member or frame only.
    """

    type: Literal["file"] = "file"
    incidental: ClassVar[frozenset[str]] = frozenset({"end_after", "pace"})
    follow: bool = Field(
        False, description="Whether to wait for more at the end of the files, and for new files."
    )
    end_after: float | None = Field(
        None,
        gt=0,
        description="With follow: seconds without anything new after which the stream ends.",
    )

    time: str | None = Field(
        None,
        min_length=1,
        description="Name of the field that holds the time of a record, a number or text as in ISO "
        "8601; it becomes the timestamp of the record.",
    )
    time_unit: TimeUnit = Field(
        "s", description="Of numbers in that field: seconds, milliseconds or microseconds."
    )
    pace: PaceField = Field(
        AS_FAST_AS_POSSIBLE,
        description="When records come: as_fast_as_possible, or as far apart as they were recorded "
        "by their time (recorded), or at a rate such as 100 per second.",
    )

    @model_validator(mode="after")
    def _check_time(self) -> FileSource:
        if self.time is None and self.time_unit != "s":
            message = "expected time beside time_unit, found none; name the field that holds it"
            raise GraphError([Problem(("time_unit",), message)])
        if self.time is None and self.pace == RECORDED:
            message = "expected time beside recorded, found none; name the field that holds it"
            raise GraphError([Problem(("pace",), message)])
        return self

    @model_validator(mode="after")
    def _check_following(self) -> FileSource:
        if self.follow and self.path == "-":
            message = (
                "expected no follow with standard input, which is read as it comes, found true; "
                "leave it out"
            )
            raise GraphError([Problem(("follow",), message)])
        if self.end_after is not None and not self.follow:
            message = f"expected it with follow: true, found {self.end_after:g} without; add it"
            raise GraphError([Problem(("end_after",), message)])
        if self.follow and self.is_parquet:
            message = "expected no follow with parquet, whose files are whole, found true; give "
            message += "a pattern, and begin anew when there are more"
            raise GraphError([Problem(("follow",), message)])
        if self.pace != AS_FAST_AS_POSSIBLE and self.follow:
            message = f"expected none with follow, whose records come as they do, found {self.pace}"
            raise GraphError([Problem(("pace",), f"{message}; leave one of them out")])
        return self

    @property
    def only_scalars(self) -> bool:
        """Whether no field is an array: cells of csv are single values."""
        return isinstance(self.resolved_format, CsvFormat)

    @property
    def rereads(self) -> bool:
        """Whether it can go on at a checkpoint: files can, pipes cannot."""
        return self.may_be_file

    def decoder(self, folder: Path, position: Mapping[str, str | int]) -> Codec | None:
        """Return what decodes again the row that stood at ``position``.

        Raises:
            ConnectorError: The file, whose first row names the columns, is gone.
        """
        declared = self.resolved_format
        if self.is_parquet:
            return None
        if not has_header(declared):
            return declared.line_codec()
        path = str(position.get("path", self.path))
        found = "none"
        try:
            if (header := read_header(folder / path, declared)) is not None:
                return csv_codec(declared, header)
        except (OSError, ValueError) as error:
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
        require(self.extra_requires(), where=context.name)
        reader = await self._reader(context)
        try:
            is_paced = self.pace != AS_FAST_AS_POSSIBLE
            yield PacedReader(reader, self.pace, context.name) if is_paced else reader
        finally:
            reader.close()

    async def _reader(self, context: Context) -> FileReader | FollowingReader:
        declared = self.resolved_format
        stamp = Stamp(self.time, self.time_unit) if self.time else None
        if self.follow:
            return FollowingReader(
                self.path, declared, context, end_after=self.end_after, stamp=stamp
            )
        paths = await to_thread.run_sync(find_paths, self.path, context)
        opened: Callable[..., OpenedFile] = partial(
            OpenFile, declared=declared, context=context, stamp=stamp
        )
        if self.is_parquet:
            from streamflow_connectors.files.reading.parquet_reader import OpenParquet

            opened = partial(OpenParquet, context=context, stamp=stamp)
        return FileReader(paths, context, opened)

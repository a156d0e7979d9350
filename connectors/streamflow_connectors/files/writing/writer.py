"""Writing files and pipes.

A worker thread encodes a batch and, to a file, writes it at once. A pipe may be full: there the
event loop waits until it takes something, so that the wait can be cancelled and no thread hangs.
What could not be written then goes out first the next time, so that no record is ever torn.
"""

from __future__ import annotations

import logging
import os
import select
import stat
from collections.abc import Mapping, Sequence
from typing import Any, Final

import anyio
from anyio import to_thread

from streamflow.checkpoints.disk import make_folder, sync_folder
from streamflow.codecs.formats import Format
from streamflow.contracts import Context
from streamflow.errors import ConnectorError
from streamflow.records import Batch, Rejected, split_rejected
from streamflow_connectors.files.headers import csv_codec, has_header, read_header
from streamflow_connectors.files.packing import packing_of
from streamflow_connectors.files.writing.encoding import FileEncoder, cannot_write
from streamflow_connectors.files.writing.ends import cut_back, mark_of, mend, other_files

logger = logging.getLogger("streamflow.file")

CLOSING_TIME: Final = 5.0
"""Seconds that a pipe may take to accept the end of packed data."""

_STANDARD_OUTPUT: Final = 1


def open_writer(path: str, declared: Format, context: Context, *, is_appended: bool) -> FileWriter:
    """Return a writer to the file at ``path``, making the folders above it.

    Raises:
        ConnectorError: It cannot be written.
    """
    if path == "-":
        return FileWriter(_STANDARD_OUTPUT, path, declared, context)
    full = context.folder / path
    mark = mark_of(path, context)
    if mark and "bytes" not in mark:
        raise other_files(context)
    fields: Sequence[str] | None = None
    # A pipe that nobody reads would hold up the opening; a file does not care.
    flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK
    flags |= os.O_APPEND if is_appended or mark else os.O_TRUNC
    try:
        make_folder(full.parent)
        if mark:
            cut_back(full, mark, context)
            fields = mark.get("fields")
        elif is_appended:
            mend(full, declared, context)
            if has_header(declared) and (header := read_header(full, declared)):
                fields = csv_codec(declared, header).fields
        descriptor = os.open(full, flags, 0o666)
        if context.is_checkpointed and full.is_file():
            sync_folder(full.parent)
    except ConnectorError:
        raise
    except (OSError, ValueError) as error:
        raise cannot_write(context, path, error) from error
    return FileWriter(descriptor, path, declared, context, fields)


class FileWriter:
    """Writes one file; what is flushed has been handed to the operating system.

    Args:
        descriptor: The open file; closed by the writer, standard output excepted.
        path: As written in the graph.
        declared: The format.
        context: Of the node.
        fields: The columns of a csv file which is continued.
    """

    def __init__(
        self,
        descriptor: int,
        path: str,
        declared: Format,
        context: Context,
        fields: Sequence[str] | None = None,
    ) -> None:
        self._descriptor = descriptor
        self._path = path
        self._format = declared
        self._context = context
        self._encoder = FileEncoder(declared, fields)
        self._has_header = bool(fields)
        status = os.fstat(descriptor)
        packing = packing_of(path)
        self._packer = packing.packer(is_new=not status.st_size) if packing else None
        self._rest: bytes | memoryview = b""
        self._is_file = stat.S_ISREG(status.st_mode)
        self._is_pipe = not self._is_file
        self._is_closed = False
        if self._is_pipe and context.is_checkpointed:
            logger.warning(
                "%s: %s is no file that could be cut back; a crash lets records come again",
                context.name,
                path,
            )

    def __repr__(self) -> str:
        return f"<FileWriter {self._context.name}: {self._path}, {len(self._rest)} bytes waiting>"

    async def write(self, batch: Batch) -> Rejected | None:
        """Write values, after the header if these are the first of a csv file.

        Raises:
            ConnectorError: They cannot be written.
        """
        rejected = await to_thread.run_sync(self._take, batch)
        await self._send()
        return rejected

    async def flush(self) -> None:
        """Hand everything to the operating system.

        Raises:
            ConnectorError: It does not take it.
        """
        await to_thread.run_sync(self._pack, False)
        await self._send()

    async def mark(self) -> Mapping[str, Any]:
        """Put a file on disk, with its member ended, and return its length and its columns.

        Raises:
            ConnectorError: The disk does not take it.
        """
        return await to_thread.run_sync(self._mark) if self._is_file else {}

    async def aclose(self) -> None:
        """Close; once more does nothing. What a cancelled write left over is dropped."""
        if self._is_closed:
            return
        self._is_closed = True
        self._rest = b""
        try:
            with anyio.move_on_after(CLOSING_TIME, shield=True):
                await to_thread.run_sync(self._pack, True, abandon_on_cancel=True)
                await self._send()
        finally:
            if self._descriptor != _STANDARD_OUTPUT:
                os.close(self._descriptor)

    async def _send(self) -> None:
        """Write the rest to a pipe, as it takes it."""
        while self._rest:
            try:
                await anyio.wait_writable(self._descriptor)
            except PermissionError:  # a device that never makes a writer wait, as /dev/null
                self._is_pipe = False
            await to_thread.run_sync(self._write_rest)

    def _take(self, batch: Batch) -> Rejected | None:
        encoded = self._encoder.encode(batch)
        _, rejected = split_rejected(batch, encoded.causes)
        parts = []
        if not self._has_header and (header := self._encoder.header):
            self._has_header = True
            parts.append(header)
        data = b"".join([*parts, self._format.terminator.join([*encoded.payloads, b""])])
        self._append(data if self._packer is None else self._packer.pack(data))
        if not self._is_pipe:
            self._write_rest()
        return rejected

    def _mark(self) -> dict[str, Any]:
        self._pack(True)
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise cannot_write(self._context, self._path, error) from error
        mark: dict[str, Any] = {"path": self._path, "bytes": os.fstat(self._descriptor).st_size}
        if fields := self._encoder.fields:
            mark["fields"] = fields
        return mark

    def _pack(self, is_end: bool) -> None:
        """Let the packed form hold everything so far; at an end, as whole members."""
        if self._packer is not None:
            self._append(self._packer.end_member() if is_end else self._packer.flush())
        if not self._is_pipe:
            self._write_rest()

    def _append(self, data: bytes) -> None:
        self._rest = b"".join([self._rest, data])

    def _write_rest(self) -> None:
        """Write to a file everything, to a pipe what it takes without waiting."""
        # A pipe that can be written to takes this much at once.
        most = select.PIPE_BUF if self._is_pipe else None
        try:
            while self._rest:
                rest = memoryview(self._rest)
                self._rest = rest[os.write(self._descriptor, rest[:most]) :]
                if self._is_pipe:
                    return
        except BlockingIOError:
            return  # somebody else was quicker to fill the pipe
        except OSError as error:
            raise cannot_write(self._context, self._path, error) from error

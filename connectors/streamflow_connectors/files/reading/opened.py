"""A file or pipe that is being read.

A file never makes a reader wait, so a worker thread reads until a batch is full. A pipe does:
the event loop waits until it can be read, and only then a thread reads what is there. So no
thread ever hangs in a read, and cancelling a wait loses nothing.
"""

from __future__ import annotations

import logging
import os
import stat
from functools import cached_property
from typing import Final

import anyio

from streamflow.codecs.conversion import decode
from streamflow.codecs.formats import Format
from streamflow.contracts import Codec, Context, Fetch
from streamflow.errors import ConnectorError
from streamflow.records import Batch, Partition
from streamflow_connectors.files.headers import csv_codec, has_header
from streamflow_connectors.files.packing import packing_of
from streamflow_connectors.files.stamp import Stamp

logger = logging.getLogger("streamflow.file")

MOST_RECORDS: Final = 1000
"""Of one batch."""

MOST_BYTES: Final = 2**20
"""Of one batch, unless a single record is longer."""

CHUNK_BYTES: Final = 2**16
_MOST_CHUNKS: Final = 64
"""Read in one go where no batch gets full, so that a reader which is cancelled ends soon."""


class OpenFile:
    """One file and how far it has been read.

    Args:
        path: As written in the graph.
        declared: The format.
        context: Of the node.
        start: The first row to return; a pipe has nothing before it.
        stamp: What gives records their time, if anything does.
    """

    def __init__(
        self,
        path: str,
        declared: Format,
        context: Context,
        *,
        start: int = 1,
        stamp: Stamp | None = None,
    ) -> None:
        self._path = path
        self._format = declared
        self._context = context
        self._stamp = stamp
        self._next = 1
        self._splitter = declared.splitter()
        self._codec: Codec | None = None
        if not has_header(declared):
            self._codec = declared.line_codec()
        packing = packing_of(path)
        self._unpacker = packing.unpacker() if packing else None
        self._payloads: list[bytes] = []
        self._has_all = False
        self._is_dry = False
        self._fault: ConnectorError | None = None
        self._descriptor = self._open()
        self._is_pipe = not stat.S_ISREG(os.fstat(self._descriptor).st_mode)
        # Standard input may be a file that somebody else has begun to read.
        self._start_bytes = 0 if self._is_pipe else os.lseek(self._descriptor, 0, os.SEEK_CUR)
        self._size_bytes = 0
        self._start = 1 if self._is_pipe else start
        if self._is_pipe and context.is_checkpointed:
            logger.warning(
                "%s: %s is no file that could be read again; a crash loses what is in flight",
                context.name,
                path,
            )

    @cached_property
    def partition(self) -> Partition:
        """What its records are positions of."""
        return Partition(self._context.name, (("path", self._path),), "line")

    @property
    def is_at_end(self) -> bool:
        """Whether there is nothing more to return."""
        return self._has_all and not self._payloads and self._fault is None

    async def wait(self) -> None:
        """Wait until reading gives something at once."""
        has_more = self._unpacker is not None and self._unpacker.has_more
        if self._is_pipe and self._needs_data() and not has_more:
            try:
                await anyio.wait_readable(self._descriptor)
            except PermissionError:
                self._is_pipe = False  # a device that never makes a reader wait, as /dev/null

    def read(self) -> Fetch | None:
        """Return the next records; None if what was read completes none, or at the end.

        Raises:
            ConnectorError: The file is damaged here, and every record before has been returned; or
                it ends before the row to start at.
        """
        if self._next < self._start:
            self._skip()
            return None
        if self._is_pipe:
            if self._needs_data():
                self._gather()
        else:
            for _ in range(_MOST_CHUNKS):
                if self._is_full() or self._has_all or self._fault or self._is_dry:
                    break
                self._gather()
        if not self._payloads and self._fault is not None:
            raise self._fault
        return self._fetch(self._take()) if self._payloads else None

    def close(self) -> None:
        """Close the file; standard input stays open, since it is not ours."""
        if self._descriptor:
            os.close(self._descriptor)

    def _open(self) -> int:
        if self._path == "-":
            return 0
        try:
            # A pipe without a writer would hold up the opening; a file does not care.
            return os.open(self._context.folder / self._path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise self._error(error.strerror or str(error)) from error

    def _skip(self) -> None:
        """Leave out rows that an earlier run has finished, without decoding them."""
        for _ in range(_MOST_CHUNKS):
            self._gather()
            count = min(self._start - self._next, len(self._payloads))
            del self._payloads[:count]
            self._next += count
            if self._next == self._start or self._is_dry:
                return
            if self._fault is not None:
                raise self._fault
            if self._has_all:
                message = (
                    f"{self._context.name}: expected at least {self._start - 1} rows in "
                    f"{self._path} as the checkpoint says, found {self._next - 1}; restore the "
                    f"file, or use --reset to begin anew"
                )
                raise ConnectorError(message)

    def _gather(self) -> None:
        """Read once, and keep the payloads that this completes."""
        try:
            data = self._read()
            if data:
                self._payloads += self._splitter.split(data)
            if self._has_all:
                self._payloads += self._splitter.end()
            if self._codec is None and self._payloads:
                self._codec = csv_codec(self._format, self._payloads.pop(0))
        except BlockingIOError:
            return  # somebody else was quicker to read the pipe
        except (OSError, ValueError) as error:
            if self._codec is None:  # rows without a header cannot be read
                self._payloads.clear()
            self._fault = self._error(str(error))

    def _read(self) -> bytes:
        """Return the next data, unpacked; they may be empty before the end."""
        if self._unpacker is not None and self._unpacker.has_more:
            return self._unpacker.take()
        data = self._read_data()
        if self._unpacker is None or self._is_dry:
            return data
        self._unpacker.feed(data)
        return self._unpacker.take()

    def _read_data(self) -> bytes:
        """Return the next data as they are; none at the end, which is then known."""
        data = os.read(self._descriptor, CHUNK_BYTES)
        self._size_bytes += len(data)
        self._has_all = not data
        if self._has_all:
            self._check_size()
        return data

    def _check_size(self) -> None:
        """Raise ValueError if the end is not that of the file as it was, but amid a record, say."""
        status = os.fstat(self._descriptor)
        if stat.S_ISREG(status.st_mode) and status.st_size < self._start_bytes + self._size_bytes:
            message = "that it was cut short while it was read"
            raise ValueError(message)

    def _needs_data(self) -> bool:
        return not self._payloads and not self._has_all and self._fault is None

    def _is_full(self) -> bool:
        return len(self._payloads) >= MOST_RECORDS or sum(map(len, self._payloads)) >= MOST_BYTES

    def _take(self) -> list[bytes]:
        """Take the payloads of one batch, at least one."""
        count = size = 0
        for count, payload in enumerate(self._payloads[:MOST_RECORDS]):
            size += len(payload)
            if count and size > MOST_BYTES:
                break
        else:
            count += 1
        taken, self._payloads = self._payloads[:count], self._payloads[count:]
        return taken

    def _fetch(self, payloads: list[bytes]) -> Fetch:
        assert self._codec is not None
        start, self._next = self._next, self._next + len(payloads)
        batch = Batch(
            payloads,
            [self.partition] * len(payloads),
            range(start, self._next),
            originals=payloads,
            size_bytes=sum(map(len, payloads)),
        )
        fetch = decode(self._codec, batch, {self.partition: self._next})
        return self._stamp(fetch) if self._stamp else fetch

    def _error(self, found: str) -> ConnectorError:
        num_read = self._next - 1 + len(self._payloads)
        message = f"{self._context.name}: expected to read {self._path}, found {found} "
        message += f"after row {num_read}; repair the file or leave it out"
        return ConnectorError(message)

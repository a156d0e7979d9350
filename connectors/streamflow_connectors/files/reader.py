"""Reading files and pipes, one after the other."""

from __future__ import annotations

from collections.abc import Mapping

import anyio
import anyio.lowlevel
from anyio import to_thread

from streamflow.codecs import Format
from streamflow.contracts import Context, Fetch
from streamflow.records import Partition
from streamflow_connectors.files.opened import OpenFile
from streamflow_connectors.files.stamp import Stamp


class FileReader:
    """Reads the files at ``paths`` one after the other."""

    def __init__(
        self, paths: list[str], declared: Format, context: Context, stamp: Stamp | None = None
    ) -> None:
        self._paths = paths
        self._format = declared
        self._context = context
        self._stamp = stamp
        self._starts = context.resume.positions if context.resume else {}
        self._file: OpenFile | None = None

    async def receive(self) -> Fetch:
        """Return the next records of one file.

        Raises:
            anyio.EndOfStream: All files have been read.
            ConnectorError: A file cannot be read, or is damaged.
        """
        while self._file is not None or self._paths:
            if self._file is None:
                self._file = await to_thread.run_sync(self._open)
                del self._paths[0]
            await self._file.wait()
            fetch = await to_thread.run_sync(self._file.read)
            if fetch is not None:
                return fetch
            if self._file.is_at_end:
                self.close()
        await anyio.lowlevel.checkpoint()
        raise anyio.EndOfStream

    async def commit(self, positions: Mapping[Partition, int]) -> None:
        """Do nothing: a file has no place to store positions."""

    def behind(self) -> int | None:
        """Return None: how many records a file has is known when it has been read."""
        return None

    def close(self) -> None:
        """Close the file that is open."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> OpenFile:
        path = self._paths[0]
        start = self._starts.get((("path", path),), 1)
        return OpenFile(path, self._format, self._context, start=start, stamp=self._stamp)

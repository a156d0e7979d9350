"""Reading files and pipes, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

import anyio
import anyio.lowlevel
from anyio import to_thread

from streamflow.contracts import Context, Fetch
from streamflow.records import Partition
from streamflow_connectors.files.reading.opened import OpenFile

if TYPE_CHECKING:
    from streamflow_connectors.files.reading.parquet_reader import OpenParquet

OpenedFile: TypeAlias = "OpenFile | OpenParquet"


class FileReader:
    """Reads files one after the other.

    Args:
        paths: Of the files.
        context: Of the node.
        opened: What opens one of them, at the row ``start``.
    """

    def __init__(
        self, paths: list[str], context: Context, opened: Callable[..., OpenedFile]
    ) -> None:
        self._paths = paths
        self._opened = opened
        self._context = context
        self._starts = context.resume.positions if context.resume else {}
        self._file: OpenedFile | None = None

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

    def _open(self) -> OpenedFile:
        path = self._paths[0]
        start = self._starts.get((("path", path),), 1)
        return self._opened(path, start=start)

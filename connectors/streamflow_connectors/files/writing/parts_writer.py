"""Writing several files, in worker threads, and finishing them when it is time."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import anyio
from anyio import to_thread

from streamflow.contracts import Context
from streamflow.errors import ConnectorError
from streamflow.records import Batch, Rejected
from streamflow_connectors.files.writing.encoding import cannot_write
from streamflow_connectors.files.writing.parts import Parts
from streamflow_connectors.network.loops import beside

_Result = TypeVar("_Result")


@asynccontextmanager
async def opened_parts(parts: Parts, path: str, context: Context) -> AsyncIterator[PartsWriter]:
    """Give a writer; leaving the block lets all files be whole, an exception leaves them."""
    writer = PartsWriter(parts, path, context)
    try:
        async with beside(writer.watch):
            yield writer
            await writer.end()
    finally:
        writer.close()


class PartsWriter:
    """Writes the files of `Parts`; what is flushed has been handed to the operating system.

    Args:
        parts: The files.
        path: As written in the graph.
        context: Of the node.
    """

    def __init__(self, parts: Parts, path: str, context: Context) -> None:
        self._parts = parts
        self._path = path
        self._context = context
        self._one_at_a_time = anyio.Lock()
        self._changed = anyio.Event()
        self._failure: ConnectorError | None = None

    def __repr__(self) -> str:
        return f"<PartsWriter {self._context.name}: {self._path}>"

    async def write(self, batch: Batch) -> Rejected | None:
        """Write values.

        Raises:
            ConnectorError: They cannot be written.
        """
        rejected = await self._call(partial(self._parts.take, batch, anyio.current_time()))
        self._changed.set()
        return rejected

    async def flush(self) -> None:
        """Hand everything to the operating system.

        Raises:
            ConnectorError: It does not take it.
        """
        await self._call(self._parts.flush)

    async def mark(self) -> Mapping[str, Any]:
        """Put everything on disk, and return how far each file is.

        Raises:
            ConnectorError: The disk does not take it.
        """
        return await self._call(partial(self._parts.mark, anyio.current_time()))

    def publication(self) -> Callable[[], Awaitable[None]]:
        """Return what gives files their names that are whole in the last mark."""
        return partial(self._call, self._parts.publication())

    async def watch(self) -> None:
        """Finish files when they are old enough, also if nothing comes any more."""
        while self._parts.is_timed and self._failure is None:
            async with self._one_at_a_time:
                self._changed, due = anyio.Event(), self._parts.next_due
            with anyio.CancelScope(deadline=math.inf if due is None else due) as scope:
                await self._changed.wait()
            if not scope.cancelled_caught:
                continue
            try:
                await self._call(partial(self._parts.finish_due, anyio.current_time()))
            except ConnectorError as error:
                self._failure = error  # for whoever writes next

    async def end(self) -> None:
        """Let all files be whole, and have their names if that is safe.

        Raises:
            ConnectorError: The disk does not take it.
        """
        await self._call(self._parts.end)

    def close(self) -> None:
        """Close all files as they are."""
        self._parts.close()

    async def _call(self, work: Callable[[], _Result]) -> _Result:
        if self._failure is not None:
            raise self._failure
        try:
            async with self._one_at_a_time:
                return await to_thread.run_sync(work)
        except ConnectorError:
            raise
        except OSError as error:
            raise cannot_write(self._context, self._path, error) from error

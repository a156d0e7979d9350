"""Readers of systems that send by themselves: a task receives, a bounded backlog holds the rest.

    system -> pump (a task) -> Backlog -> BacklogReader.receive -> the graph
                   ^ waits while the backlog is full

Waiting for the system happens in the task, so that a `receive` which is cancelled loses nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio

from streamflow.contracts import Codec, Context
from streamflow_connectors.network.loops import beside
from streamflow_connectors.network.reading import Item, ItemReader
from streamflow_connectors.network.retries import Retries

MOST_RECORDS: Final = 1000
MOST_BYTES: Final = 8 * 2**20
"""Of a backlog, and so of a batch, unless a single record is larger."""


class Backlog:
    """Items that wait to be received; bounded, for one task that puts and one that takes."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._size_bytes = 0
        self._end: Exception | None = None
        self._changed = anyio.Event()

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"<Backlog {len(self)} waiting>"

    async def put(self, item: Item) -> None:
        """Add an item, waiting while there is no room."""
        while self._items and (
            len(self) >= MOST_RECORDS or self._size_bytes + len(item.payload) > MOST_BYTES
        ):
            await self._changed.wait()
        self._items.append(item)
        self._size_bytes += len(item.payload)
        if len(self) == 1:
            self._notify()

    def end(self, error: Exception) -> None:
        """Let `take` raise once all items are taken."""
        self._end = error
        self._notify()

    def take(self) -> list[Item]:
        """Return all that wait.

        Raises:
            Exception: What `end` was called with, if none waits.
        """
        items = list(self._items)
        if items:
            self._items.clear()
            self._size_bytes = 0
            self._notify()
        elif self._end is not None:
            raise self._end
        return items

    async def wait(self) -> None:
        """Wait until something changes."""
        await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


class BacklogReader(ItemReader):
    """Receives what a pump has put into a backlog; see `streamflow.contracts.Reader`.

    Args:
        context: What the node is told.
        codec: Decodes the payloads.
        retries: Of the pump.
        end_after: Seconds without a record after which the stream ends.
    """

    def __init__(
        self, context: Context, codec: Codec, retries: Retries, *, end_after: float | None = None
    ) -> None:
        super().__init__(context, codec, end_after)
        self.backlog = Backlog()
        self._retries = retries

    def behind(self) -> int | None:
        """Return how many records have come and wait."""
        return len(self.backlog)

    def retrying(self) -> str | None:
        """Return what is tried again, for how long and why; ``None`` if all is well."""
        return self._retries.retrying()

    def report(self) -> Mapping[str, int]:
        """Return how often something failed."""
        return {"failures that were tried again": self._retries.num_failed}

    def _take(self) -> list[Item]:
        return self.backlog.take()

    async def _wait(self) -> None:
        await self.backlog.wait()


@asynccontextmanager
async def pumping(
    pump: Callable[[Backlog], Coroutine[Any, Any, None]], backlog: Backlog
) -> AsyncIterator[None]:
    """Run a pump in a task while the block runs; its error, or its end, ends the backlog."""

    async def run() -> None:
        try:
            await pump(backlog)
            backlog.end(anyio.EndOfStream())
        except Exception as error:  # whatever it is, the run has to hear of it
            backlog.end(error)

    async with beside(run):
        yield

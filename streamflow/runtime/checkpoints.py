"""Checkpoints of a run: the stream stops at a record, and all state there becomes one snapshot.

Theory of operation. Every source passes a `SourceGate`. With ``every: 4`` the gates of two sources,
each record a dot, a bar where a gate waits:

    source a   . . . .|. . . .|          the run waits until everything let through is finished:
    source b   . . .  |. . .  |          written and flushed, rejected, or held by an operator

With all gates closed and nothing in flight the state of every processor is copied, and every sink
is asked for its mark. Then the gates open, the snapshot is written meanwhile, and when it is safe
the positions of the sources are committed. Gates close where a source has let a multiple of
``every`` records through since the stream's start, so that the points are part of the result;
the other sources wait wherever they are. Where records are merged in turn, they go on until they
too have reached their multiple, have ended, or wait at a full edge for records of those that have:
what is merged by then is the same in every run.

Before the first record of all the first snapshot is written, so that what sinks write until the
next one can be cut off again. A run that is stopped takes its last snapshot without ending the
processors, whose windows stay open; one whose streams have ended takes it after they have.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Protocol

import anyio
from anyio import CancelScope, to_thread

from streamflow.checkpoints.snapshot import Snapshot
from streamflow.contracts import Fetch
from streamflow.errors import CheckpointError
from streamflow.records import Place

logger = logging.getLogger("streamflow")


PATIENCE = 2.0
"""Seconds that a write may take to come to its end once the run is cancelled."""


class Participant(Protocol):
    """A node's task, as far as checkpoints know it."""

    @property
    def is_at_rest(self) -> bool:
        """Whether it can do nothing: it waits for another node or a checkpoint, or has ended."""
        ...

    async def settled(self) -> None:
        """Wait until everything that the node let into the graph is finished."""
        ...

    async def contribute(self) -> Snapshot:
        """Return the node's part of a snapshot; nothing is in flight."""
        ...

    def hold(self, is_holding: bool) -> None:
        """Let what waits for its turn count as finished, since a snapshot keeps it, or no more."""
        ...

    def suspend(self) -> None:
        """Keep what waits for its turn, as the run is to go on later."""
        ...

    def take_commit(self) -> Callable[[], Awaitable[None]]:
        """Take what is finished now, and return what commits it."""
        ...


class SourceGate:
    """One source's way into the graph.

    Args:
        every: Records between checkpoints; None where something else says when.
        count: Records let through before this run.
        positions: Where each partition goes on.

    Attributes:
        is_ended: Whether the stream has ended.
        is_closed: Whether nothing may pass.
        is_reached: Whether a record waits for a checkpoint that is due.
    """

    def __init__(
        self, every: int | None, count: int = 0, positions: Mapping[Place, int] | None = None
    ) -> None:
        self.count = count
        self.positions = dict(positions or {})
        self.is_ended = False
        self.is_closed = False
        self.is_reached = False
        self._every = every
        self._passing = anyio.Lock()
        self._met = count  # the multiple at which it has waited

    @property
    def is_due(self) -> bool:
        """Whether no record may pass before a checkpoint."""
        if self._every is None:
            return False
        return self.count > self._met and self.count % self._every == 0

    def cut(self, fetch: Fetch, most_records: int) -> tuple[Fetch, Fetch | None]:
        """Return what may pass at once, before the next checkpoint, and the rest."""
        size = fetch.num_records
        room = most_records
        if self._every is not None:
            room = min(room, self._every - self.count % self._every)
        return (fetch, None) if size <= room else fetch.cut(room)

    @asynccontextmanager
    async def passing(self, fetch: Fetch) -> AsyncIterator[None]:
        """Let records through, as soon as no checkpoint is being taken."""
        async with self._passing:
            self.count += fetch.num_records
            self.positions |= {partition.place: end for partition, end in fetch.ends.items()}
            yield

    @asynccontextmanager
    async def closed(self) -> AsyncIterator[None]:
        """Let nothing through, not even the end of the stream."""
        async with self._passing:
            self.is_closed = True
            yield
            self.is_closed = False
            self._met = self.count

    @asynccontextmanager
    async def ending(self) -> AsyncIterator[None]:
        """Let the end of the stream through, as soon as no checkpoint is being taken."""
        async with self._passing:
            yield
            self.is_ended = True


class Coordinator:
    """Takes the checkpoints of a run, one at a time.

    Args:
        parts: All nodes' tasks.
        gates: Of the sources.
        write: Makes a snapshot safe, or raises `CheckpointError`; called in a worker thread.
        write_first: Likewise the one before the first record; None where there has been one.
        seconds: Between checkpoints; None where gates say when.
        is_in_step: Whether gates wait until all of them are due.

    Attributes:
        is_suspended: Whether the run is stopped, to go on later.
        taken: Count of checkpoints that are safe, the first one before all records not counted.
        failed: Count of those that could not be written.
        failure: Why the last one could not be written; None if it is safe.
        paused: Seconds for which everything stood still, to copy all state.
        safe_since: When the last one was safe, by `time.monotonic`; None before the first.
    """

    def __init__(
        self,
        parts: Sequence[Participant],
        gates: Sequence[SourceGate],
        write: Callable[[Snapshot], object],
        *,
        write_first: Callable[[Snapshot], object] | None = None,
        seconds: float | None,
        is_in_step: bool,
    ) -> None:
        self.is_suspended = False
        self.taken = self.failed = 0
        self.failure: str | None = None
        self.paused = 0.0
        self.safe_since: float | None = None
        self._parts = parts
        self._gates = gates
        self._write = write
        self._write_first = write_first
        self._seconds = seconds
        self._is_in_step = is_in_step
        self._unfinished = len(parts)
        self._last = anyio.current_time()
        self._moved = anyio.Event()
        self._opened = anyio.Event()
        self._begun = anyio.Event()
        self._over = anyio.Event()
        self._idle = anyio.Semaphore(1)  # what writes one snapshot at a time holds it

    def __repr__(self) -> str:
        return f"<Coordinator: {self.taken} checkpoints taken, {self.failed} failed>"

    async def run(self) -> None:
        """Take checkpoints when they are due, and the last one when all nodes have finished.

        Raises:
            CheckpointError: The last one cannot be written: what came since the one before is not
                kept, which a run that ends must not hide.
        """
        await self._begin()
        async with anyio.create_task_group() as writers:
            while self._unfinished:
                await self._something()
                if self._unfinished and self._is_due():
                    writers.start_soon(self._save, *await self._stop_and_collect())
        await self._idle.acquire()
        await self._save(*await self._collect())
        self._over.set()
        if self.failure is not None:
            raise CheckpointError(self.failure)

    def suspend(self) -> None:
        """Say that the run stops, to go on later."""
        self.is_suspended = True
        for part in self._parts:
            part.suspend()

    def moved(self) -> None:
        """Say that a node may have come to rest."""
        self._moved.set()

    async def begun(self) -> None:
        """Wait until records may come."""
        await self._begun.wait()

    async def reached(self, gate: SourceGate) -> None:
        """Wait until the checkpoint that a gate is due for has been taken."""
        while gate.is_due:
            opened = self._opened
            gate.is_reached = True
            self._moved.set()
            await opened.wait()
        gate.is_reached = False

    async def finish(self) -> None:
        """Say that a node has done its last work; wait until the last checkpoint is taken."""
        self._unfinished -= 1
        self._moved.set()
        await self._over.wait()

    async def _begin(self) -> None:
        """Take the first checkpoint, if there has been none."""
        if self._write_first is not None:
            snapshot, _ = await self._collect()
            await self._is_written(self._write_first, snapshot)
        self._begun.set()

    async def _something(self) -> None:
        """Wait until a gate or a node has moved, or the time has come."""
        left = None if self._seconds is None else self._last + self._seconds - anyio.current_time()
        with anyio.move_on_after(left):
            await self._something_moved()

    async def _something_moved(self) -> None:
        await self._moved.wait()
        self._moved = anyio.Event()

    def _is_due(self) -> bool:
        if self._seconds is not None:
            return anyio.current_time() >= self._last + self._seconds
        is_due = any(gate.is_due for gate in self._gates if not gate.is_ended)
        return is_due and (not self._is_in_step or self._is_at_rest())

    def _is_at_rest(self) -> bool:
        return all(part.is_at_rest for part in self._parts)

    async def _stop_and_collect(self) -> tuple[Snapshot, list[Callable[[], Awaitable[None]]]]:
        """Stop the streams while nothing is in flight, and copy all state."""
        await self._idle.acquire()
        async with AsyncExitStack() as closed:
            for part in self._parts:
                part.hold(True)  # frees sources that wait at a full edge
            for gate in self._gates:
                await closed.enter_async_context(gate.closed())
            for part in self._parts:
                await part.settled()
            while not self._is_at_rest():
                await self._something_moved()
            began = anyio.current_time()
            collected = await self._collect()
            for part in self._parts:
                part.hold(False)
        self._last = anyio.current_time()
        self.paused += self._last - began
        opened, self._opened = self._opened, anyio.Event()
        opened.set()
        self._moved.set()  # what has moved meanwhile is yet to be looked at
        return collected

    async def _collect(self) -> tuple[Snapshot, list[Callable[[], Awaitable[None]]]]:
        parts = [await part.contribute() for part in self._parts]
        snapshot = Snapshot(
            *(
                {name: value for part in parts for name, value in getattr(part, kind).items()}
                for kind in ("records", "positions", "states", "marks")
            )
        )
        return snapshot, [part.take_commit() for part in self._parts]

    async def _save(
        self, snapshot: Snapshot, commits: Sequence[Callable[[], Awaitable[None]]]
    ) -> None:
        """Write a snapshot, then commit; if that fails it is counted."""
        try:
            if await self._is_written(self._write, snapshot):
                self.taken += 1
                for commit in commits:
                    await commit()
        finally:
            self._idle.release()

    async def _is_written(self, write: Callable[[Snapshot], object], snapshot: Snapshot) -> bool:
        """Write a snapshot; count what comes of it."""
        try:
            await _patiently(partial(write, snapshot))
        except CheckpointError as error:
            self.failed += 1
            self.failure = str(error)
            if self._unfinished:
                logger.error("%s; the run goes on, and so does the last good checkpoint", error)
            return False
        self.failure = None
        self.safe_since = time.monotonic()
        return True


async def _patiently(write: Callable[[], object]) -> None:
    """Call in a worker thread, which is abandoned a while after the caller is cancelled.

    A disk that does not answer keeps the thread, not the run.

    Raises:
        CheckpointError: The call did.
    """
    patience, ended = CancelScope(shield=True), anyio.Event()
    failure: CheckpointError | None = None

    async def write_shielded() -> None:
        nonlocal failure
        with patience:
            try:
                await to_thread.run_sync(write, abandon_on_cancel=True)
            except CheckpointError as error:
                failure = error
        ended.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write_shielded)
        try:
            await ended.wait()
        finally:
            patience.deadline = anyio.current_time() + PATIENCE
    if failure is not None:
        raise failure

"""One task for each node: what a source, a processor and a sink do from opening to closing.

Every task opens its node, waits until all others are open too, and then moves parcels until
its inputs end. A task that fails ends the run; it hands nothing on, so nothing is acked by it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
from anyio import CapacityLimiter, to_thread

from streamflow.checkpoints import Snapshot
from streamflow.contracts import (
    Beginning,
    Context,
    Fetch,
    Processor,
    Publishing,
    Reader,
    Reporting,
    Retrying,
    Writer,
)
from streamflow.errors import ConnectorError
from streamflow.nodes.declarations import Operator, Sink, Source
from streamflow.records import Batch, Partition, Rejected, show_place
from streamflow.runtime.acks import Ledger, Share
from streamflow.runtime.batch_size import MAX_RECORDS, Pace
from streamflow.runtime.channels import Edge, Inbox, Parcel, finish, send_all
from streamflow.runtime.checkpoints import Coordinator, Gate
from streamflow.runtime.dead_letters import DeadLetters
from streamflow.runtime.stats import NodeStats
from streamflow.runtime.threads import opened_in_thread

T = TypeVar("T")

COMMIT_INTERVAL = 1.0
COMMIT_TIMEOUT = 10.0
FLUSH_RECORDS = 16 * 1024  # a sink writes before it flushes under constant load


def waiting_at(node: str) -> str:
    """Name what waits at a node; no node has such a name."""
    return f"{node}:waiting"


class NodeTask(ABC):
    """Runs one node; knows its outputs, its dead letters and its counters."""

    kind: str

    def __init__(self, context: Context, dead_letters: DeadLetters) -> None:
        self.name = context.name
        self.outputs: list[Edge] = []
        self.received = 0
        self.sent = 0
        self.coordinator: Coordinator | None = None
        self._is_finished = False
        self._inboxes: tuple[Inbox, ...] = ()
        self._context = context
        self._dead_letters = dead_letters

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name}: {self.received} received, {self.sent} sent>"

    async def run(self, opened: Callable[[], Awaitable[None]]) -> None:
        """Run the node to its end; call ``opened`` when it is open, to wait for the others."""
        try:
            await self._run(opened)
        finally:
            self._dead_letters.close()
            for edge in self.outputs:
                edge.close()

    @abstractmethod
    async def _run(self, opened: Callable[[], Awaitable[None]]) -> None: ...

    def join(self, coordinator: Coordinator) -> None:
        """Take part in checkpoints."""
        self.coordinator = coordinator
        for inbox in self._inboxes:
            inbox.on_rest = coordinator.moved

    @property
    def is_at_rest(self) -> bool:
        """Whether it can do nothing: it waits for another node or a checkpoint, or has ended."""
        is_waiting = any(inbox.is_at_rest for inbox in self._inboxes)
        return is_waiting or self._is_finished or any(edge.is_blocked for edge in self.outputs)

    async def settled(self) -> None:
        """Wait until everything that the node let into the graph is finished."""
        await anyio.lowlevel.checkpoint()

    async def contribute(self) -> Snapshot:
        """Return the node's part of a checkpoint; nothing is in flight."""
        return Snapshot()

    def hold(self, is_holding: bool) -> None:
        """Let what waits for its turn count as finished, since a checkpoint keeps it."""
        for inbox in self._inboxes:
            inbox.hold(is_holding)

    def suspend(self) -> None:
        """Keep what waits for its turn, as the run is to go on later."""
        for inbox in self._inboxes:
            inbox.is_suspended = True

    def _waiting(self) -> dict[str, dict[str, Any]]:
        """Return what waits for its turn, as the state of a node of its own."""
        states = [inbox.state() for inbox in self._inboxes]
        return {waiting_at(self.name): state for state in states if state}

    def take_commit(self) -> Callable[[], Awaitable[None]]:
        """Take what is finished now, and return what commits it."""
        return anyio.lowlevel.checkpoint

    async def _finish(self) -> None:
        """Wait, once this node's last work is done, for the last checkpoint."""
        self._is_finished = True
        if self.coordinator is not None:
            await self.coordinator.finish()

    def stats(self) -> NodeStats:
        """Return the node's figures at this moment."""
        rejected = self._dead_letters.count
        return NodeStats(self.kind, self.received, self.sent, rejected, **self._figures())

    @abstractmethod
    def _figures(self) -> dict[str, Any]:
        """Return the figures that only this kind of node has."""

    async def _emit(
        self,
        handled: int,
        batch: Batch | None,
        rejected: Rejected | None,
        shares: Sequence[Share],
        outputs: Sequence[str] | None = None,
    ) -> None:
        """Pass on what became of ``handled`` records, and settle the shares of all of them."""
        rejected_shares: Sequence[Share] = ()
        if rejected and batch:
            good, bad = Parcel(batch, tuple(shares)).split([batch, rejected.batch])
            shares, rejected_shares = good.shares, bad.shares
        elif rejected:
            shares, rejected_shares = (), shares
        await self._dead_letters.handle(handled, rejected, rejected_shares)
        if batch:
            self.sent += len(batch)
            if batch.senders is not None:  # they concern nobody but this node
                batch = replace(batch, senders=None)
            edges, batches = self._ways(batch, outputs)
            await send_all(edges, Parcel(batch, tuple(shares)).split(batches))
        else:
            finish(shares)

    def _ways(
        self, batch: Batch, outputs: Sequence[str] | None
    ) -> tuple[Sequence[Edge], Sequence[Batch]]:
        """Return the edges that records go to, at least one, and the records of each."""
        if outputs is None:
            return self.outputs, [batch] * len(self.outputs)
        ways = {
            edge: [index for index, output in enumerate(outputs) if output == edge.output]
            for edge in self.outputs
        }
        taken = {edge: batch.select(indices) for edge, indices in ways.items() if indices}
        return list(taken), list(taken.values())


class SourceTask(NodeTask):
    """Receives, tracks what is in flight, commits what is finished."""

    kind = "source"

    def __init__(
        self,
        source: Source,
        context: Context,
        dead_letters: DeadLetters,
        gate: Gate,
        *,
        commits: bool = True,
    ) -> None:
        super().__init__(context, dead_letters)
        self.reader: Reader | None = None
        self.gate = gate
        self._source = source
        self._commits = commits
        self._reads_again = source.rereads or source.keeps_positions
        # Where the graph is slow, few records are let in at once: stopping and checkpoints are
        # quick, and what is left of a fetch when the run stops is read by a later one.
        self._pace = Pace(MAX_RECORDS)
        self._ledger = Ledger()
        self._uncommitted: dict[Partition, int] = {}
        self._skipped = 0
        self._is_stopping = False
        self._receiving = anyio.CancelScope()

    def stop(self) -> None:
        """Receive no more; what is in flight is finished and committed."""
        self._is_stopping = True
        self._receiving.cancel()

    def _figures(self) -> dict[str, Any]:
        behind = self.reader.behind() if self.reader else None
        positions = {show_place(place): end for place, end in self.gate.positions.items()}
        own = {"skipped": self._skipped, "behind": behind, "positions": positions}
        return {**own, **_told_by(self.reader)}

    async def _run(self, opened: Callable[[], Awaitable[None]]) -> None:
        async with self._source.open(self._context) as reader:
            self.reader = reader
            if not (self._commits or self.gate.positions) and isinstance(reader, Beginning):
                self.gate.positions |= {part.place: at for part, at in reader.begins().items()}
            await opened()
            if self.coordinator is not None:
                await self.coordinator.begun()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._commit_regularly, reader)
                await self._receive_all(reader)
                async with self.gate.ending():
                    self._dead_letters.close()
                    for edge in self.outputs:
                        edge.close()
                if self.coordinator is not None:
                    self.coordinator.moved()
                await self._ledger.settled()
                tasks.cancel_scope.cancel()
            await self._finish()
            if self.coordinator is None:
                await self._commit(reader, self._ledger.take())

    async def _receive_all(self, reader: Reader) -> None:
        while (rest := await self._receive(reader)) is not None:
            while rest is not None and not (self._is_stopping and self._reads_again):
                fetch, rest = self.gate.cut(rest, self._pace.records)
                with self._pace.watching(fetch.num_records):
                    async with self.gate.passing(fetch):
                        await self._pass_on(fetch)
                if self.coordinator is not None:
                    await self.coordinator.reached(self.gate)

    async def _pass_on(self, fetch: Fetch) -> None:
        share = self._ledger.track(fetch.ends)
        self.received += fetch.num_records
        self._skipped += fetch.skipped
        await self._emit(fetch.num_records, fetch.batch, fetch.rejected, [share])

    @property
    def is_at_rest(self) -> bool:
        """Whether it lets nothing in, whatever it receives."""
        gate = self.gate
        return gate.is_closed or gate.is_reached or gate.is_ended or super().is_at_rest

    async def settled(self) -> None:
        """Wait until everything received is finished."""
        await self._ledger.settled()

    async def contribute(self) -> Snapshot:
        """Return how far the source is."""
        return Snapshot({self.name: self.gate.count}, {self.name: dict(self.gate.positions)})

    def take_commit(self) -> Callable[[], Awaitable[None]]:
        """Take the positions up to which everything is finished."""
        # Those of a checkpoint that could not be written are committed with the next one.
        self._uncommitted |= self._ledger.take()
        positions = dict(self._uncommitted)

        async def commit() -> None:
            if self.reader is not None:
                await self._commit(self.reader, positions)
            for partition, position in positions.items():
                if self._uncommitted.get(partition) == position:
                    del self._uncommitted[partition]

        return commit

    async def _receive(self, reader: Reader) -> Fetch | None:
        """Return what comes next, ``None`` at the end of the stream or when stopped."""
        if self._is_stopping:
            return None
        with anyio.CancelScope() as self._receiving:
            try:
                return await reader.receive()
            except anyio.EndOfStream:
                return None
        return None

    async def _commit_regularly(self, reader: Reader) -> None:
        while self.coordinator is None:  # else what is committed follows the checkpoint
            await anyio.sleep(COMMIT_INTERVAL)
            # A commit under way is not torn, but neither may it keep the run for ever.
            with anyio.move_on_after(COMMIT_TIMEOUT, shield=True) as scope:
                await self._commit(reader, self._ledger.take())
            if scope.cancelled_caught:
                message = (
                    f"{self.name}: expected to commit within {COMMIT_TIMEOUT:g} s, found no answer"
                )
                raise ConnectorError(message)

    async def _commit(self, reader: Reader, positions: Mapping[Partition, int]) -> None:
        if positions and self._commits:
            await reader.commit(positions)


class ProcessorTask(NodeTask):
    """Turns batches into batches; blocking processors work in a thread of their own limiter."""

    def __init__(
        self,
        operator: Operator,
        kind: str,
        inbox: Inbox,
        context: Context,
        dead_letters: DeadLetters,
    ) -> None:
        super().__init__(context, dead_letters)
        self.kind = kind
        self.processor: Processor | None = None
        self._operator = operator
        self._inbox = inbox
        self._inboxes = (inbox,)
        self._limiter = CapacityLimiter(1) if operator.blocking else None
        self._pace = Pace(1 if operator.blocking else MAX_RECORDS)

    def _figures(self) -> dict[str, Any]:
        report = self.processor.report() if self.processor else {}
        return {"waiting": self._inbox.records, "edges": self._inbox.stats, "report": report}

    async def _run(self, opened: Callable[[], Awaitable[None]]) -> None:
        async with opened_in_thread(self._operator.open(self._context), self._limiter) as processor:
            self.processor = processor
            resume = self._context.resume
            if resume is not None and resume.state is not None:
                await self._call(partial(processor.restore, resume.state))
            await opened()
            while (parcel := await self._inbox.receive(self._pace.records)) is not None:
                await self._process(processor, parcel)
            if self.coordinator is None or not self.coordinator.is_suspended:
                processed = await self._call(processor.end)
                await self._emit(0, processed.batch, processed.rejected, (), processed.outputs)
            self._dead_letters.close()
            for edge in self.outputs:
                edge.close()
            await self._finish()

    async def contribute(self) -> Snapshot:
        """Return the processor's state."""
        assert self.processor is not None
        state = await self._call(self.processor.state)
        return Snapshot(states={self.name: state, **self._waiting()})

    async def _process(self, processor: Processor, parcel: Parcel) -> None:
        count = len(parcel.batch)
        self.received += count
        with self._pace.watching(count) if self._limiter else nullcontext():
            processed = await self._call(lambda: processor.process(parcel.batch))
        await self._emit(
            count, processed.batch, processed.rejected, parcel.shares, processed.outputs
        )

    async def _call(self, function: Callable[[], T]) -> T:
        if self._limiter:
            return await to_thread.run_sync(function, limiter=self._limiter)
        await anyio.lowlevel.checkpoint()
        return function()


class SinkTask(NodeTask):
    """Writes, and finishes what has been flushed."""

    kind = "sink"

    def __init__(
        self, sink: Sink, inbox: Inbox, context: Context, dead_letters: DeadLetters
    ) -> None:
        super().__init__(context, dead_letters)
        self.writer: Writer | None = None
        self._sink = sink
        self._inbox = inbox
        self._inboxes = (inbox,)
        self._unflushed: list[Parcel] = []

    def _figures(self) -> dict[str, Any]:
        own = _told_by(self.writer)
        return {"waiting": self._inbox.records, "edges": self._inbox.stats, **own}

    async def _run(self, opened: Callable[[], Awaitable[None]]) -> None:
        async with self._sink.open(self._context) as writer:
            self.writer = writer
            await opened()
            while (parcel := await self._inbox.receive(MAX_RECORDS)) is not None:
                await self._write(writer, parcel)
                await self._flush_if_due(writer)
            self._dead_letters.close()
            await self._finish()

    async def contribute(self) -> Snapshot:
        """Return the mark of the sink."""
        assert self.writer is not None
        return Snapshot(states=self._waiting(), marks={self.name: await self.writer.mark()})

    def take_commit(self) -> Callable[[], Awaitable[None]]:
        """Return what shows the output that the checkpoint holds."""
        if isinstance(self.writer, Publishing):
            return self.writer.publication()
        return super().take_commit()

    async def _write(self, writer: Writer, parcel: Parcel) -> None:
        count = len(parcel.batch)
        self.received += count
        rejected = await writer.write(parcel.batch)
        rejected_shares: Sequence[Share] = ()
        if rejected:
            parcel, letters = parcel.split([parcel.batch, rejected.batch])
            rejected_shares = letters.shares
            count -= len(rejected.batch)
        await self._dead_letters.handle(len(parcel.batch), rejected, rejected_shares)
        self._unflushed.append(parcel)
        self.sent += count

    async def _flush_if_due(self, writer: Writer) -> None:
        """Flush before waiting for more, or when much has been written since."""
        unflushed = sum(len(parcel.batch) for parcel in self._unflushed)
        if self._inbox.is_ready and unflushed < FLUSH_RECORDS:
            return
        await writer.flush()
        for parcel in self._unflushed:
            parcel.finish()
        self._unflushed.clear()


def _told_by(end: Reader | Writer | None) -> dict[str, Any]:
    """Return what a reader or writer says about itself, if it does."""
    told: dict[str, Any] = {}
    if isinstance(end, Retrying):
        told["retrying"] = end.retrying()
    if isinstance(end, Reporting):
        told["report"] = end.report()
    return told

"""The tasks of nodes that receive: a processor turns batches into batches, a sink writes them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeVar

import anyio.lowlevel
from anyio import CapacityLimiter, to_thread

from streamflow.checkpoints import Snapshot
from streamflow.contracts import Context, Processor, Publishing, Writer
from streamflow.nodes.declarations import Operator, Sink
from streamflow.runtime.acks import Share
from streamflow.runtime.batch_size import MAX_RECORDS, Pace
from streamflow.runtime.channels import Inbox
from streamflow.runtime.dead_letters import DeadLetters
from streamflow.runtime.parcels import Parcel
from streamflow.runtime.tasks import NodeTask, told_by
from streamflow.runtime.threads import opened_in_thread

T = TypeVar("T")

FLUSH_RECORDS = 16 * 1024  # a sink writes before it flushes under constant load


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
        own = told_by(self.writer)
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

"""What all tasks share: a node is opened, waits for the others, and moves parcels to the end.

Every node has one task, a `SourceTask`, `ProcessorTask` or `SinkTask`. One that fails ends the run;
it hands nothing on, so nothing is acked by it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import anyio.lowlevel

from streamflow.checkpoints import Snapshot
from streamflow.contracts import Context, Reader, Reporting, Retrying, Writer
from streamflow.records import Batch, Rejected
from streamflow.runtime.acks import Share
from streamflow.runtime.channels import Edge, Inbox, send_all
from streamflow.runtime.checkpoints import Coordinator
from streamflow.runtime.dead_letters import DeadLetters
from streamflow.runtime.parcels import Parcel, finish
from streamflow.runtime.stats import NodeStats


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


def told_by(end: Reader | Writer | None) -> dict[str, Any]:
    """Return what a reader or writer says about itself, if it does."""
    told: dict[str, Any] = {}
    if isinstance(end, Retrying):
        told["retrying"] = end.retrying()
    if isinstance(end, Reporting):
        told["report"] = end.report()
    return told

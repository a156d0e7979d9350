"""The task of a source: lets records in, knows what is in flight, commits what is finished."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio

from streamflow.checkpoints import Snapshot
from streamflow.contracts import Beginning, Context, Fetch, Reader
from streamflow.errors import ConnectorError
from streamflow.nodes.declarations import Source
from streamflow.records import Partition, show_place
from streamflow.runtime.acks import Ledger
from streamflow.runtime.batch_size import MAX_RECORDS, Pace
from streamflow.runtime.checkpoints import SourceGate
from streamflow.runtime.dead_letters import DeadLetters
from streamflow.runtime.tasks import NodeTask, told_by

COMMIT_INTERVAL = 1.0
COMMIT_TIMEOUT = 10.0


class SourceTask(NodeTask):
    """Receives, tracks what is in flight, commits what is finished."""

    kind = "source"

    def __init__(
        self,
        source: Source,
        context: Context,
        dead_letters: DeadLetters,
        gate: SourceGate,
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
        return {**own, **told_by(self.reader)}

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

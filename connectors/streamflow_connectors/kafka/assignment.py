"""The partitions that a reader holds, epoch by epoch."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping

import anyio
from aiokafka import ConsumerRebalanceListener, TopicPartition  # type: ignore[import-untyped]

from streamflow.records import Partition


class Holdings:
    """What is assigned, how far it was received, and how far that is committed.

    Attributes:
        epoch: Grows each time partitions are given up.
        assigned: The partitions; None between two assignments.
        positions: Next to receive, of the partitions that are settled.
        has_assignment: Set with the first assignment.
    """

    def __init__(self, source: str) -> None:
        self.epoch = 0
        self.assigned: frozenset[TopicPartition] | None = None
        self.positions: dict[TopicPartition, int] = {}
        self.has_assignment = anyio.Event()
        self._source = source
        self._partitions: dict[TopicPartition, Partition] = {}
        self._committed: dict[TopicPartition, int] = {}
        self._given_up: dict[TopicPartition, range] = {}  # received here and not committed
        self._num_shared = 0
        self._is_lost = False
        self._is_closing = False
        self._changed = anyio.Event()  # set, and replaced, when waiting may be over

    def __repr__(self) -> str:
        count = "no" if self.assigned is None else len(self.assigned)
        return f"<Holdings {count} partitions, epoch {self.epoch}, {self.in_flight} in flight>"

    @property
    def unsettled(self) -> frozenset[TopicPartition]:
        """The partitions of which it is not known where they go on."""
        return (self.assigned or frozenset()) - self.positions.keys()

    @property
    def in_flight(self) -> int:
        """How many positions have been received and not committed."""
        return sum(
            max(0, position - self._committed[part]) for part, position in self.positions.items()
        )

    @property
    def num_shared(self) -> int:
        """How many positions received here another member receives, too, or has received."""
        return self._num_shared + sum(map(len, self._given_up.values()))

    def assign(self, assigned: Iterable[TopicPartition]) -> None:
        """Take partitions, which are settled next."""
        self.assigned = frozenset(assigned)
        self.has_assignment.set()

    def settle(
        self, starts: Mapping[TopicPartition, int], committed: Mapping[TopicPartition, int]
    ) -> None:
        """Take note of where partitions go on, and of what others have committed meanwhile."""
        for part in starts:
            given_up = self._given_up.pop(part, range(0))
            taken = min(committed.get(part, 0), given_up.stop) - given_up.start
            self._num_shared += max(0, taken)
        self.positions.update(starts)
        self._committed.update(starts)

    def partition(self, part: TopicPartition) -> Partition:
        """Return a partition as records name it, with the epoch."""
        partition = self._partitions.get(part)
        if partition is None:
            place = (("topic", part.topic), ("partition", part.partition))
            partition = Partition(self._source, place, "offset", self.epoch)
            self._partitions[part] = partition
        return partition

    def commit(self, positions: Mapping[TopicPartition, int]) -> None:
        """Take note of positions of this epoch that are committed."""
        self._committed.update(positions)
        self._announce()

    def lose(self) -> None:
        """Take note that nothing of this epoch can be committed any more."""
        self._is_lost = True
        self._announce()

    def close(self) -> None:
        """Let nobody wait any more."""
        self._is_closing = True
        self._announce()

    async def drained(self) -> None:
        """Wait until all that was received is committed, or cannot be any more."""
        while self.in_flight and not (self._is_lost or self._is_closing):
            await self._changed.wait()

    def revoke(self) -> None:
        """Give all partitions up; a new epoch begins."""
        self.epoch += 1
        self.assigned = None
        for part, position in self.positions.items():
            if position > self._committed[part]:
                self._given_up[part] = range(self._committed[part], position)
        self.positions.clear()
        self._partitions.clear()
        self._committed.clear()
        self._is_lost = False

    def _announce(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


class Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is not typed
    """Hears of rebalances in a task of the driver, which waits for it, as do the other members.

    Args:
        revoke: Finishes what is in flight, and begins a new epoch.
        assign: Takes partitions.
    """

    def __init__(
        self,
        revoke: Callable[[], Awaitable[None]],
        assign: Callable[[Iterable[TopicPartition]], None],
    ) -> None:
        self._revoke = revoke
        self._assign = assign

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Finish what is in flight and begin a new epoch."""
        await self._revoke()

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Take partitions."""
        self._assign(assigned)

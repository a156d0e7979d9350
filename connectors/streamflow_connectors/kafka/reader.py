"""An open Kafka source: records in batches, positions by epoch.

Theory of operation. The driver rebalances in the background, whenever the group changes. It asks
for the partitions back, and the reader keeps it waiting until all it gave out is committed, or
until a deadline; nothing is received meanwhile. Then a new epoch begins:

    epoch 1              | revoked           released | epoch 2
    receive -> A0 A1 A2  | commit A1's end            | settle: where do my partitions go on?
                         | commit A2's end: all done  | receive -> B0 ...

What is not finished by the deadline is abandoned: its positions belong to the epoch before and are
not committed any more, since whoever owns the partition now began at what was committed then, and
reads on from there. In a run with checkpoints commits follow these alone, so nothing is waited
for; a partition that comes back goes on where this reader was, which keeps its model from learning
a record twice.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager

import anyio
from aiokafka import (  # type: ignore[import-untyped]
    AIOKafkaConsumer,
    ConsumerRecord,
    TopicPartition,
)
from aiokafka.errors import (  # type: ignore[import-untyped]
    IllegalStateError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)

from streamflow.contracts import Context, Fetch, Resume
from streamflow.errors import ConnectorError
from streamflow.records import Partition
from streamflow_connectors.kafka.aiokafka_private import KafkaClient, client_of, is_member
from streamflow_connectors.kafka.assignment import Holdings, Listener
from streamflow_connectors.kafka.commits import Commits
from streamflow_connectors.kafka.connection import (
    DRAIN_FRACTION,
    client_options,
    close_consumer,
    connecting,
    describe,
    gave_up,
    new_consumer,
    reach,
    start,
)
from streamflow_connectors.kafka.faults import Faults, is_passing
from streamflow_connectors.kafka.options import KafkaSourceOptions
from streamflow_connectors.kafka.records import Decoder, by_driver, topic_partition
from streamflow_connectors.kafka.topics import NewTopics, find_partitions, find_positions

logger = logging.getLogger("streamflow.kafka")

POLL_MS = 100  # how soon records that are left out, such as aborted ones, move the position on
RETRY = 0.1
CHECK_SECONDS = 1.0


@asynccontextmanager
async def open_reader(source: KafkaSourceOptions, context: Context) -> AsyncIterator[KafkaReader]:
    """Connect and find out where to begin; disconnect when the block is left.

    Raises:
        ConnectorError: No broker answers in time, a topic does not exist, aiokafka lacks what is
            needed, or the event loop is not asyncio's.
    """
    options = await client_options(source, context)
    consumer = new_consumer(source, options)
    client = await client_of(consumer)
    reader = KafkaReader(consumer, client, source, context)
    try:
        async with connecting(source, context, options):
            await reach(client, context, options)
            partitions = await find_partitions(client, source, context)
        # Members of the group that is joined may finish what they hold before.
        wait = source.rebalance_timeout if source.is_shared else 0.0
        async with connecting(source, context, options, wait=wait):
            await reader.begin(partitions)
        yield reader
        await reader.finish()
    finally:
        await reader.aclose()
        await close_consumer(consumer, in_a_hurry=reader.retrying() is not None)


class KafkaReader:
    """Reads the partitions that are assigned to it; see `streamflow.contracts.Reader`."""

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        client: KafkaClient,
        source: KafkaSourceOptions,
        context: Context,
    ) -> None:
        self._client = client
        self._consumer = consumer
        self._source = source
        self._context = context
        self._decoder = Decoder(source)
        self._is_manual = not source.is_shared
        self._held = Holdings(context.name)
        self._faults = Faults()
        self._faults.watch(self._client)
        self._commits = Commits(
            consumer,
            self._held,
            self._faults,
            name=context.name,
            group=source.group,
            is_member=not self._is_manual,
        )
        self._untold: set[TopicPartition] = set()  # begin at a position that is not committed
        resume = context.resume or Resume()
        self._reached = by_driver(resume.positions)  # learned, whatever is committed
        self._is_rewind = resume.is_rewind
        self._ends: Mapping[TopicPartition, int] | None = None
        self._new_topics = NewTopics(self._client, source, is_manual=self._is_manual)

    def __repr__(self) -> str:
        return f"<KafkaReader {self._context.name}: {self._held!r}>"

    async def receive(self) -> Fetch:
        """Wait for records, or for positions to move past records that are left out.

        Raises:
            anyio.EndOfStream: ``stop_at_end``, and all assigned partitions have been read.
            ConnectorError: A position is lost, or the driver failed.
        """
        while True:
            try:
                self._check()
                await self._take_new_topics()
                await self._settle()
                if self._is_at_end():
                    raise anyio.EndOfStream
                found = await self._poll()
                # What came with a new assignment is read again once that is settled.
                records = {part: found[part] for part in found if part in self._held.positions}
                ends = await self._advance()
            except KafkaError as error:
                if is_passing(error) or self._is_between(error):
                    await anyio.sleep(RETRY)
                    continue
                message = (
                    f"{self._context.name}: expected records, found {describe(error)}; "
                    "check the broker and the permissions"
                )
                raise ConnectorError(message) from error
            if ends:
                return self._decoder.decode(records, ends, self._held.partition)

    async def commit(self, positions: Mapping[Partition, int]) -> None:
        """Commit positions for the group, of partitions still owned in the same epoch.

        Where brokers do not answer soon it is done in the background.

        Raises:
            ConnectorError: The broker refused.
        """
        owned = {
            topic_partition(partition.place): position
            for partition, position in positions.items()
            if partition.epoch == self._held.epoch
        }
        if self._source.group is not None and owned:
            await self._commits.store(owned)

    def retrying(self) -> str | None:
        """Return what is being tried again, for how long and why; None if all is well."""
        return self._faults.retrying()

    def report(self) -> Mapping[str, int]:
        """Return how often requests failed, and what another model may learn as well."""
        return {
            "requests that failed and were tried again": self._faults.num_failed,
            "records that another member receives, too": self._held.num_shared,
        }

    def begins(self) -> Mapping[Partition, int]:
        """Return where reading begins in each partition."""
        held = self._held
        return {held.partition(part): position for part, position in held.positions.items()}

    def behind(self) -> int | None:
        """Return how many positions lie beyond the next, as of the last answer of the broker."""
        if self._held.assigned is None:
            return None
        behind = 0
        for part, position in self._held.positions.items():
            newest = self._newest(part)
            if newest is None:
                return None
            behind += max(0, newest - position)
        return behind

    def _newest(self, part: TopicPartition) -> int | None:
        """Return the end of a partition, as of the last answer of the broker."""
        if part not in self._consumer.assignment():
            return None  # topics that match have come up, and the group is about to share out anew
        return self._consumer.highwater(part)  # type: ignore[no-any-return]

    def _is_between(self, error: KafkaError) -> bool:
        """Whether partitions are gone and not yet given up, as when topics come up that match.

        What was received just now is left, and read again by whoever gets them.
        """
        return isinstance(error, IllegalStateError) and not self._is_manual

    def _check(self) -> None:
        """Raise what has failed in the background, or has been tried for too long.

        Raises:
            ConnectorError: The broker refused positions, or brokers have been away for too long.
        """
        self._commits.check()
        for part in self._held.positions:
            if not self._client.has_leader(part):
                self._faults.fail(("Fetch", part.topic, part.partition), "no leader")
        if self._faults.seconds > self._source.retry_for:
            raise gave_up(self._source, self._context, self._faults)

    async def begin(self, partitions: list[TopicPartition]) -> None:
        """Join the group and settle, so that what is written from now on is read.

        Raises:
            ConnectorError: Brokers were away for too long.
        """
        self._new_topics.begin(partitions)
        if self._is_manual:
            self._consumer.assign(partitions)
            self._held.assign(partitions)
        else:
            self._consumer.subscribe(
                self._source.topics,
                self._source.topic_pattern,
                listener=Listener(self._revoke, self._assign),
            )
        await start(self._consumer.start())
        if self._source.stop_at_end:
            self._ends = await self._consumer.end_offsets(partitions)
        await self._held.has_assignment.wait()  # the driver tells the listener a moment later
        await self._settle()

    async def finish(self) -> None:
        """Wait for all positions to be stored.

        Raises:
            ConnectorError: They were not.
        """
        await self._commits.finish()

    async def aclose(self) -> None:
        """Store nothing more, and keep nobody waiting."""
        self._held.close()
        await self._commits.aclose()

    async def _take_new_topics(self) -> None:
        held = self._held.assigned or frozenset()
        if new := await self._new_topics.look(held):
            self._consumer.assign([*held, *new])  # forgets where the others are
            for part, position in self._held.positions.items():
                self._consumer.seek(part, position)
            self._held.assign(held | new)

    async def _settle(self) -> None:
        """Find out where newly assigned partitions begin, and go there.

        Raises:
            ConnectorError: Brokers were away for too long.
        """
        try:
            with anyio.fail_after(self._source.retry_for):  # the driver would try for ever
                await self._find_starts(self._held.unsettled)
        except TimeoutError:
            raise gave_up(self._source, self._context, self._faults) from None

    async def _find_starts(self, new: frozenset[TopicPartition]) -> None:
        if not new:
            return
        epoch = self._held.epoch
        starts = {part: self._reached[part] for part in new & self._reached.keys()}
        committed: dict[TopicPartition, int] = {}
        if self._source.group is not None:
            for part in new:
                if (position := await self._consumer.committed(part)) is not None:
                    committed[part] = position
        for part, position in committed.items():
            if not (self._is_rewind and part in starts):
                starts[part] = max(position, starts.get(part, 0))
        unset = new - starts.keys()
        later = {part for part in unset if self._came_up(part)}
        starts.update(await find_positions(self._consumer, [*later], "earliest"))
        starts.update(await find_positions(self._consumer, [*unset - later], self._source.start))
        if epoch != self._held.epoch:
            return
        for part, position in starts.items():
            self._consumer.seek(part, position)
        self._held.settle(starts, committed)
        is_kept = self._source.group is not None or self._context.is_checkpointed
        if self._source.start != "earliest" and is_kept:
            # Kept even if nothing comes, for the next run or owner would begin at a later end.
            self._untold.update(unset)

    def _came_up(self, part: TopicPartition) -> bool:
        """Whether a partition that nothing is known of has come up since reading began."""
        has_resumed = self._context.resume is not None and self._is_manual
        if self._source.start == "latest" and has_resumed:
            return True  # since the checkpoint
        return self._new_topics.is_new(part)

    async def _poll(self) -> Mapping[TopicPartition, list[ConsumerRecord]]:
        """Return the records at hand, none if none came for a moment."""
        found: Mapping[TopicPartition, list[ConsumerRecord]] = {}
        try:
            # It takes no notice of its own timeout while the group rebalances.
            with anyio.move_on_after(CHECK_SECONDS):
                found = await self._consumer.getmany(
                    timeout_ms=POLL_MS, max_records=self._source.max_poll_records
                )
        except NoOffsetForPartitionError:
            return {}  # of a partition just assigned, which is settled next
        except OffsetOutOfRangeError as error:
            for part, position in error.args[0].items():
                await self._go_on_elsewhere(part, position)
            return {}
        return found

    async def _go_on_elsewhere(self, part: TopicPartition, position: int) -> None:
        """Do what ``if_lost`` says about a position that the topic does not hold.

        Raises:
            ConnectorError: It says nothing, or ``error``.
        """
        epoch = self._held.epoch
        first = (await find_positions(self._consumer, [part], "earliest"))[part]
        end = (await find_positions(self._consumer, [part], "latest"))[part]
        if epoch != self._held.epoch:
            return
        found = (
            f"{self._context.name}: expected position {position} in topic {part.topic} "
            f"partition {part.partition}, found positions {first} to {end}"
        )
        if self._source.if_lost == "error":
            message = f"{found}; set if_lost to earliest or latest to go on there"
            raise ConnectorError(message)
        logger.warning("%s; going on at the %s", found, self._source.if_lost)
        self._held.positions[part] = position
        self._consumer.seek(part, first if self._source.if_lost == "earliest" else end)

    async def _advance(self) -> dict[Partition, int]:
        """Return the partitions whose position has moved, be it past what is left out."""
        ends = {}
        held = self._held.positions
        for part, before in list(held.items()):
            position = await self._consumer.position(part)  # it is known: this does not wait
            if position != before or part in self._untold:
                ends[self._held.partition(part)] = held[part] = position
        self._untold.clear()
        if self._context.is_checkpointed:
            self._reached.update(held)
        return ends

    def _is_at_end(self) -> bool:
        if self._ends is None or self._held.assigned is None:
            return False
        return all(self._is_read(part, self._ends.get(part, 0)) for part in self._held.assigned)

    def _is_read(self, part: TopicPartition, end: int) -> bool:
        """Whether all up to ``end`` has been read; a position beyond only counts if it exists."""
        position = self._held.positions.get(part, -1)
        return position == end or end < position <= (self._newest(part) or -1)

    async def _revoke(self) -> None:
        """Wait until all that was received is committed, or for too long; begin a new epoch."""
        # Commits follow checkpoints where there are any, and those of a lost member fail.
        if is_member(self._consumer) and not self._context.is_checkpointed:
            with anyio.move_on_after(self._source.rebalance_timeout * DRAIN_FRACTION):
                await self._held.drained()
        if count := self._held.in_flight:
            name = self._context.name
            logger.info("%s: gives up partitions with %d positions in flight", name, count)
        self._commits.abandon()
        self._faults.clear()
        self._held.revoke()
        self._untold.clear()

    def _assign(self, assigned: Iterable[TopicPartition]) -> None:
        """Have partitions settled by the next `receive`."""
        self._held.assign(assigned)
        self._commits.begin()

"""Every part of aiokafka that it does not document, and what happens without it.

aiokafka does not tell what its requests meet, tries for ever, and may leave tasks behind; what this
package does about it takes parts that any version may rename. A client that lacks one that is
needed fails when it opens; for each other one a warning says, once, what goes without it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain
from typing import Any, Final, NamedTuple

import aiokafka  # type: ignore[import-untyped]
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, OffsetAndMetadata, TopicPartition

from streamflow.errors import ConnectorError

logger = logging.getLogger("streamflow.kafka")

TESTED: Final = "0.14.0"

Send = Callable[[], Awaitable[Any]]


class Name(NamedTuple):
    """A part of aiokafka.

    Attributes:
        path: Where it is, from the object that has it.
        purpose: What it is for.
        without: What happens without it; ``None`` if nothing goes.
    """

    path: str
    purpose: str
    without: str | None = None


_LEFT = "closing while brokers are away may take longer and leave a task behind"
_UNSEEN = "a position that cannot be stored while topics come up is read again"

NAMES: Final[dict[str, Name]] = {
    # of a client
    "client.send": Name("send", "to see what requests meet"),
    "client.bootstrap": Name("bootstrap", "to connect before anything else is asked"),
    "client.close": Name("close", "to end requests that brokers do not answer"),
    "client.metadata": Name("fetch_all_metadata", "to look for topics without creating any"),
    "client.update": Name("force_metadata_update", "to look again for topics that records name"),
    "client.cluster": Name("cluster", "to know the topics and who leads their partitions"),
    "client.add_topic": Name("add_topic", "to ask about topics that records name"),
    "client.topics": Name(
        "_topics",
        "to ask no longer about topics that do not exist",
        "brokers are asked about them again and again",
    ),
    # of requests and answers
    "request.topics": Name(
        "_topics", "to tell which partitions fail", "faults of partitions are told as one"
    ),
    "answer.topics": Name(
        "topics", "to tell which partitions fail", "faults of partitions are told as one"
    ),
    "answer.schema": Name("SCHEMA", "to find the errors in answers"),
    # of a consumer
    "consumer.client": Name("_client", "to see what requests meet"),
    "consumer.generation": Name(
        "_coordinator.generation",
        "to know whether the group still counts on this member",
        "what is in flight is waited for in vain where it does not",
    ),
    "consumer.assignment": Name(
        "_subscription.subscription.assignment",
        "to store positions while topics come up",
        _UNSEEN,
    ),
    "consumer.commit": Name(
        "_coordinator.commit_offsets", "to store positions while topics come up", _UNSEEN
    ),
    "consumer.coordinator": Name("_coordinator", "to end its tasks with the consumer", _LEFT),
    "consumer.fetcher": Name("_fetcher", "to end its tasks with the consumer", _LEFT),
    # of a producer
    "producer.client": Name("client", "to see what requests meet"),
    "producer.sender": Name("_sender", "to end its task with the producer", _LEFT),
    "producer.fail_all": Name(
        "_sender._fail_all", "to end its task without an error of its own", "a log may hold one"
    ),
    "producer.fail_waiting": Name(
        "_message_accumulator.fail_all", "to deliver nothing more once it is closed"
    ),
    **{
        f"producer.{name}": Name(
            f"_message_accumulator.{name}", "to look at failed batches", "a log may hold them"
        )
        for name in ("_batches", "_pending_batches")
    },
    "batch.future": Name("future", "to look at failed batches", "a log may hold them"),
    "batch.waiter": Name("_drain_waiter", "to look at failed batches", "a log may hold them"),
    "transaction.end": Name(
        "_txn_manager.wait_for_transaction_end",
        "to tell why a transaction has failed",
        "an error may not name the instance that has fenced this one off",
    ),
    "transaction.is_open": Name(
        "_txn_manager.is_in_transaction",
        "to roll back what is open",
        "the broker does it, once the transaction has taken too long",
    ),
    # of the package
    "partitioner": Name(
        "partitioner.DefaultPartitioner", "to choose partitions by the key as Java's clients do"
    ),
    "connect": Name(
        "conn.create_conn",
        "to tell why no broker lets us in",
        "a login that is refused is tried again until connect_timeout",
    ),
}


def _part(holder: Any, key: str) -> Any:
    """Return a part of an object; ``None`` if it is not made yet, or missing and not needed.

    Raises:
        ConnectorError: It is missing and needed.
    """
    name = NAMES[key]
    for step in name.path.split("."):
        if holder is None:
            return None
        try:
            holder = getattr(holder, step)
        except AttributeError:
            _miss(name)
            return None
    return holder


def _miss(name: Name) -> None:
    if name.without is None:
        message = (
            f"aiokafka: expected {name.path}, {name.purpose}, found none in version "
            f"{aiokafka.__version__}; install aiokafka=={TESTED}"
        )
        raise ConnectorError(message)
    _warn(name)


@cache
def _warn(name: Name) -> None:
    logger.warning(
        "aiokafka %s has no %s, %s; without it %s; aiokafka==%s has it",
        aiokafka.__version__,
        name.path,
        name.purpose,
        name.without,
        TESTED,
    )


async def client_of(owner: AIOKafkaConsumer | AIOKafkaProducer) -> KafkaClient:
    """Return the connections of a consumer or producer that is not started yet.

    Raises:
        ConnectorError: The driver lacks a part that is needed; the owner is closed.
    """
    try:
        return KafkaClient(owner)
    except ConnectorError:
        await owner.stop()
        raise


class KafkaClient:
    """The connections of a consumer or producer; see `client_of`."""

    def __init__(self, owner: AIOKafkaConsumer | AIOKafkaProducer) -> None:
        kind = "consumer" if _is_consumer(owner) else "producer"
        self._driver = _part(owner, f"{kind}.client")
        for key in (key for key, name in NAMES.items() if name.without is None):
            if key.startswith(("client.", f"{kind}.")):
                _part(self._driver if key.startswith("client.") else owner, key)

    def watch(self, send: Callable[[Any, Send], Awaitable[Any]]) -> None:
        """Have all that is sent go through ``send``, which gets the request and what sends it."""
        sending = _part(self._driver, "client.send")

        async def watched(node: Any, request: Any, **options: Any) -> Any:
            return await send(request, lambda: sending(node, request, **options))

        self._driver.send = watched

    async def bootstrap(self) -> None:
        """Connect to the first broker that answers."""
        await _part(self._driver, "client.bootstrap")()

    async def close(self) -> None:
        """Disconnect, which ends all requests."""
        await _part(self._driver, "client.close")()

    async def topics(self) -> Mapping[str, set[int]]:
        """Return all topics with their partitions, the brokers' own left out."""
        cluster = await _part(self._driver, "client.metadata")()
        names = cluster.topics(exclude_internal_topics=True)
        return {name: cluster.partitions_for_topic(name) or set() for name in names}

    def knows(self, topic: str) -> bool:
        """Whether a topic is there, as of the last answer."""
        return bool(_part(self._driver, "client.cluster").partitions_for_topic(topic))

    def has_leader(self, part: TopicPartition) -> bool:
        """Whether a partition has one, as of the last answer."""
        leader = _part(self._driver, "client.cluster").leader_for_partition(part)
        return leader not in (None, -1)

    async def update(self) -> bool:
        """Ask about all topics that are in use; say whether a broker has answered."""
        return bool(await _part(self._driver, "client.update")())

    def ask_about(self, topics: Iterable[str]) -> None:
        """Ask about these topics, too, from now on."""
        for topic in topics:
            _part(self._driver, "client.add_topic")(topic)

    def ask_no_longer_about(self, topics: Iterable[str]) -> None:
        """Ask about these topics no longer, if that is possible."""
        if (known := _part(self._driver, "client.topics")) is not None:
            known.difference_update(topics)


def api_of(request: Any) -> str:
    """Return the protocol's name of a kind of request, which the driver shortens in one case."""
    name = type(request).__name__.removesuffix("Request")
    return "ListOffsets" if name == "Offset" else name


def partitions_of(request: Any) -> list[tuple[str, int]]:
    """Return the partitions that a request is about, of those that are about some."""
    topics = _part(request, "request.topics") or ()
    return [(topic, entry[0]) for topic, entries in topics for entry in entries]


def codes_by_partition(answer: Any) -> list[tuple[str, int, int]]:
    """Return topic, partition and error code of an answer that tells each."""
    topics = _part(answer, "answer.topics") or ()
    return [(topic, entry[0], entry[1]) for topic, entries in topics for entry in entries]


def code_of(answer: Any) -> int:
    """Return the error code of a whole answer; zero if it has none."""
    return answer.__dict__.get("error_code") or 0


def codes_of(answer: Any) -> Iterator[int]:
    """Yield all error codes in an answer."""
    schema = _part(answer, "answer.schema")
    yield from _codes(schema, [getattr(answer, name) for name in schema.names])


def _codes(schema: Any, values: Iterable[Any]) -> Iterator[int]:
    for name, field, value in zip(schema.names, schema.fields, values, strict=True):
        if name == "error_code":
            yield value
        elif hasattr(entry := getattr(field, "array_of", None), "names"):
            for each in value or ():
                yield from _codes(entry, each)


class MemberCommits:
    """Stores positions of partitions that a group has assigned, also where the driver would not.

    As soon as topics that match come up it has another subscription, and gives the partitions up a
    little later (https://github.com/aio-libs/aiokafka/issues/1126).
    """

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer
        self._commit = _part(consumer, "consumer.commit")
        self._assignment = _part(consumer, "consumer.assignment")

    async def store(self, positions: Mapping[TopicPartition, int]) -> None:
        """Store positions.

        Raises:
            KafkaError: No broker has taken them.
        """
        is_held = self._assignment is not None and self._commit is not None
        if is_held and _part(self._consumer, "consumer.assignment") is None:
            offsets = {part: OffsetAndMetadata(positions[part], "") for part in positions}
            await self._commit(self._assignment, offsets)
        else:
            await self._consumer.commit(positions)


def is_member(consumer: AIOKafkaConsumer) -> bool:
    """Whether the group still counts on a consumer, as far as it has heard."""
    generation = _part(consumer, "consumer.generation")
    return generation is None or generation > 0


def tasks_of(owner: AIOKafkaConsumer | AIOKafkaProducer) -> list[asyncio.Task[Any]]:
    """Return what a consumer or producer has running."""
    keys = ["consumer.coordinator", "consumer.fetcher"]
    parts = [_part(owner, key) for key in (keys if _is_consumer(owner) else ["producer.sender"])]
    held = chain(*(vars(part).values() for part in parts if part is not None))
    entries = chain(*(each if isinstance(each, set) else [each] for each in held))
    return [entry for entry in entries if isinstance(entry, asyncio.Task)]


def _is_consumer(owner: AIOKafkaConsumer | AIOKafkaProducer) -> bool:
    return isinstance(owner, AIOKafkaConsumer)


def fail_waiting(producer: AIOKafkaProducer, error: Exception) -> None:
    """Let a producer deliver nothing more, and say nothing of what it has not delivered."""
    fail_all = _part(producer, "producer.fail_all")
    for task in tasks_of(producer):
        # Without a transaction it fails by itself; what waits is told here.
        task.remove_done_callback(fail_all)
    if (fail := _part(producer, "producer.fail_waiting")) is not None:
        fail(error)
    batches = chain(
        _part(producer, "producer._pending_batches") or (),
        *(_part(producer, "producer._batches") or {}).values(),
    )
    for batch in batches:
        for future in (_part(batch, "batch.future"), _part(batch, "batch.waiter")):
            if future is not None and future.done():
                future.exception()  # else asyncio logs that nobody looked


def transaction_error(producer: AIOKafkaProducer) -> BaseException | None:
    """Return why a producer's transaction has ended, if it has failed."""
    waiting = _part(producer, "transaction.end")
    ending = waiting and waiting()
    return ending.exception() if ending is not None and ending.done() else None


def is_in_transaction(producer: AIOKafkaProducer) -> bool:
    """Whether a transaction is open, as far as that can be told."""
    is_open = _part(producer, "transaction.is_open")
    return is_open is not None and bool(is_open())


def partitioner() -> Callable[[bytes, Sequence[int], Sequence[int]], int]:
    """Return what chooses a partition by a key, of all and of those that are there."""
    made: Callable[[bytes, Sequence[int], Sequence[int]], int] = _part(aiokafka, "partitioner")()
    return made


async def try_connecting(host: str, port: int, **options: Any) -> None:
    """Connect to a broker and disconnect.

    Raises:
        OSError: It cannot be reached.
        KafkaError: It refuses, which the driver only logs.
    """
    if (connect := _part(aiokafka, "connect")) is not None:
        await (await connect(host, port, **options)).close()

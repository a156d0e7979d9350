"""A run from topic to topic that is killed again and again: learned once, published once."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
from aiokafka import (  # type: ignore[import-untyped]
    AIOKafkaConsumer,
    AIOKafkaProducer,
    TopicPartition,
)

from tests.chaos.outcomes import differences, letters, outcome
from tests.chaos.processes import (
    IS_LONG,
    PATIENCE,
    SHARE,
    Job,
    chance_of,
    ended,
    kill_often,
    reaches_moment,
)
from tests.kafka.clients import Cluster, committed
from tests.kafka.server import Server

pytestmark = pytest.mark.kafka

EVERY = 100
RECORDS = EVERY * (4 + 4 * SHARE)
STEP = 170 * EVERY  # bytes of output, about
RESTARTED = 0.2  # of the runs, during which the broker is killed, too, in the long form

GRAPH = """
version: 1
name: exact
checkpoint: {{path: checkpoints, every: {every}, keep: 2}}
failure_budget: {{fraction: 0.5}}
sources:
  readings:
    type: kafka
    bootstrap_servers: "{broker}"
    topics: [{topic_in}]
    partitions: [0]
    group: {topic_out}
    stop_at_end: true
    connect_timeout: 300
    retry_for: 300
operators:
  scaled: {{type: standardize, inputs: [readings], fields: [a, b]}}
models:
  sorter:
    inputs: [scaled]
    network: [{{Linear: [3, 8]}}, Tanh, {{Dropout: 0.1}}, {{Linear: [8, 2]}}]
    features: [a, b, c]
    target: kind
    loss: cross_entropy
    optimizer: {{Adam: {{lr: 0.01}}}}
    stages: ["2"]
    schedule: 1f1b
    executor: threads
    compile: false
sinks:
  kinds:
    type: kafka
    inputs: [sorter]
    bootstrap_servers: "{broker}"
    topic: {topic_out}
    delivery: exactly_once
    connect_timeout: 300
    retry_for: 300
  copies: {{type: file, inputs: [sorter], path: copies.jsonl}}
dead_letter: {{type: file, path: dead.jsonl}}
"""


async def fill(broker: str, topic: str, chance: random.Random) -> None:
    """Write records to partition 0, some of them without a field that the model needs."""
    async with AIOKafkaProducer(bootstrap_servers=broker, linger_ms=20) as producer:
        sent = []
        for n in range(RECORDS):
            a, b, c = chance.gauss(0, 1), chance.gauss(5, 2), chance.gauss(0, 1)
            record = {"a": a, "b": b, "kind": int(a + c > 0)} | ({"c": c} if n % 17 != 3 else {})
            value, key = json.dumps(record).encode(), b"%d" % n
            sent.append(await producer.send(topic, value, key=key, partition=0))
        await asyncio.gather(*sent)


async def end(broker: str, topic: str, isolation: str) -> int:
    """Return the position up to which readers of a kind see."""
    part = TopicPartition(topic, 0)
    consumer = AIOKafkaConsumer(bootstrap_servers=broker, isolation_level=isolation)
    async with consumer:
        return int((await consumer.end_offsets([part]))[part])


async def read(broker: str, topic: str) -> list[tuple[Any, ...]]:
    """Return all that careful readers see, and check that nothing is open."""
    last = await end(broker, topic, "read_uncommitted")
    assert await end(broker, topic, "read_committed") == last
    part = TopicPartition(topic, 0)
    consumer = AIOKafkaConsumer(bootstrap_servers=broker, isolation_level="read_committed")
    consumer.assign([part])
    records: list[Any] = []
    async with consumer:
        await consumer.seek_to_beginning(part)
        while await consumer.position(part) < last:
            for found in (await consumer.getmany(timeout_ms=100)).values():
                records += found
    return [(one.key, one.value, one.timestamp, one.headers) for one in records]


async def transaction(broker: str, topic: str) -> str:
    """Return whether dead processes have left one open."""
    ends = [await end(broker, topic, f"read_{kind}") for kind in ("committed", "uncommitted")]
    return ", with a transaction open" if ends[0] < ends[1] else ""


def prepare(folder: Path, broker: str, topic_in: str, topic_out: str) -> Job:
    folder.mkdir()
    graph = folder / "graph.yaml"
    places = {"broker": broker, "topic_in": topic_in, "topic_out": topic_out}
    graph.write_text(GRAPH.format(every=EVERY, **places))
    return Job(graph, folder / "copies.jsonl", folder / "checkpoints")


def places_of(published: Sequence[tuple[Any, ...]]) -> list[int]:
    return [json.loads(value)["source"]["offset"] for _, value, _, _ in published]


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE)
def test_a_killed_run_publishes_and_learns_as_an_uninterrupted_one(
    tmp_path: Path, server: Server
) -> None:
    chance = chance_of("exactly once")
    broker = server.address
    cluster = Cluster(broker)
    topic_in, *topics = (asyncio.run(cluster.create_topic()) for _ in range(3))
    asyncio.run(fill(broker, topic_in, chance))
    whole, broken = (
        prepare(tmp_path / name, broker, topic_in, topic)
        for name, topic in zip(("whole", "broken"), topics, strict=True)
    )
    uninterrupted = whole.start()
    restarts: list[int] = []

    def restart(process: ForkServerProcess) -> None:
        """Kill the broker and start it again, at a random moment of one of several runs."""
        if chance.random() < RESTARTED and reaches_moment(broken, process, chance, STEP):
            assert ended(uninterrupted) == 0, whole.log
            server.stop()
            server.start()
            restarts.append(broken.last_number())

    kill_often(
        broken,
        chance,
        STEP,
        look=lambda: asyncio.run(transaction(broker, topics[1])),
        disturb=restart if IS_LONG else None,
    )
    assert ended(uninterrupted) == 0, whole.log
    print(f"killed the broker {len(restarts)} times, after checkpoints {restarts}")  # noqa: T201
    broken.run()
    broken.run()  # which adds nothing
    expected, found = (asyncio.run(read(broker, topic)) for topic in topics)
    assert places_of(expected) == [n for n in range(RECORDS) if n % 17 != 3]
    assert places_of(found) == places_of(expected)
    assert found == expected
    assert broken.progress.read_bytes() == whole.progress.read_bytes()
    assert letters(broken.folder / "dead.jsonl") == letters(whole.folder / "dead.jsonl")
    assert differences(outcome(broken), outcome(whole)) == []
    last = max(places_of(expected)) + 1
    assert last <= (asyncio.run(committed(broker, topics[1], topic_in)) or 0) <= RECORDS

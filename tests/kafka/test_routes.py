"""Topics and keys that records bring along in their fields."""

from __future__ import annotations

import json
from typing import Any

import pytest
from aiokafka.partitioner import DefaultPartitioner  # type: ignore[import-untyped]

from streamflow import Graph
from streamflow.contracts import Context
from streamflow.errors import ConnectorError, GraphError
from streamflow.records import Batch, Partition, Rejected
from streamflow.testing import ListSource
from streamflow_connectors.demo.embedded_kafka import EmbeddedKafka
from streamflow_connectors.kafka import KafkaSink, KafkaSource, names
from streamflow_connectors.memory import MemorySource
from streamflow_connectors.network.routes import FromField
from tests.kafka.clients import Cluster, consume
from tests.kafka.nodes import batch as batch_of_t
from tests.runtime.graphs import graph_of

pytestmark = pytest.mark.kafka

CONTEXT = Context("out")
BY_FIELD: dict[str, Any] = {"topic": {"field": "to"}, "key": {"field": "id"}}
UNKNOWN_TOPIC = 3


def sink(address: str, **options: Any) -> KafkaSink:
    return KafkaSink(bootstrap_servers=address, **{**BY_FIELD, **options})


def batch(values: list[Any], **columns: Any) -> Batch:
    return Batch(values, batch_of_t(*range(len(values))).partitions, range(len(values)), **columns)


def told(rejected: Rejected | None) -> list[tuple[int, str]]:
    return list(zip(rejected.indices, rejected.causes, strict=True)) if rejected else []


@pytest.mark.asyncio
@pytest.mark.parametrize("in_columns", [True, False])
async def test_each_record_goes_to_the_topic_it_names_with_the_key_it_names(
    cluster: Cluster, in_columns: bool
) -> None:
    topics = [await cluster.create_topic(3) for _ in range(2)]
    rows = [{"to": topics[n % 2], "id": n % 5, "n": n} for n in range(40)]
    values: Any = {name: [row[name] for row in rows] for name in rows[0]} if in_columns else rows
    async with sink(cluster.address).open(CONTEXT) as writer:
        for start in (0, 20):
            part = Batch(values, batch_of_t(*range(40)).partitions, range(40)).slice(
                start, start + 20
            )
            assert await writer.write(part) is None
        await writer.flush()
    for number, topic in enumerate(topics):
        records = await consume(cluster.address, topic, 20)
        assert sorted(json.loads(record.value)["n"] for record in records) == [
            *range(number, 40, 2)
        ]
        for record in records:
            row = json.loads(record.value)
            key = str(row["id"]).encode()
            assert (record.key, row["to"]) == (key, topic)
            assert record.partition == DefaultPartitioner()(key, [0, 1, 2], [0, 1, 2])
        for key in {record.key for record in records}:
            numbers = [json.loads(record.value)["n"] for record in records if record.key == key]
            assert numbers == sorted(numbers)


@pytest.mark.asyncio
async def test_what_has_no_topic_or_key_is_rejected_and_the_rest_arrives(cluster: Cluster) -> None:
    topic = await cluster.create_topic()
    values = [
        {"to": topic, "id": "a", "n": 0},
        {"id": "a"},
        {"to": 5, "id": "a"},
        {"to": "", "id": "a"},
        {"to": "not/a/name", "id": "a"},
        {"to": "..", "id": "a"},
        {"to": topic},
        {"to": topic, "id": None},
        {"to": topic, "id": True},
        {"to": topic, "id": "a", "n": float("nan")},
        7,
        {"to": topic, "id": b"\xff", "n": 1},
        {"to": topic, "id": "", "n": 2},
    ]
    async with sink(cluster.address, format="msgpack").open(CONTEXT) as writer:
        rejected = await writer.write(batch(values[:9] + values[10:]))
        await writer.flush()
    field = "in the field to, which holds the name of its topic, found"
    key = "expected text or bytes or an integer in the field id, which holds the key, found"
    assert told(rejected) == [
        (1, f"expected text {field} no such field"),
        (2, f"expected text {field} an integer"),
        (3, f"expected text {field} empty text"),
        (4, "expected the name of a topic, found 'not/a/name', which cannot be one"),
        (5, "expected the name of a topic, found '..', which cannot be one"),
        (6, f"{key} no such field"),
        (7, f"{key} nothing"),
        (8, f"{key} true or false"),
        (9, f"expected text {field} no such field"),
    ]
    records = await consume(cluster.address, topic, 3)
    assert [record.key for record in records] == [b"a", b"\xff", b""]
    async with sink(cluster.address).open(CONTEXT) as writer:  # json holds no such number
        rejected = await writer.write(batch([values[6], values[9], values[0]]))
    assert [place for place, _ in told(rejected)] == [0, 1]


@pytest.mark.asyncio
async def test_a_topic_that_is_not_there_is_not_waited_for_again_and_again(
    faulty: EmbeddedKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "APPEAR_SECONDS", 0.2)
    faulty.create_topic("there")
    faulty.fail_topic("gone", UNKNOWN_TOPIC)
    values = [{"to": "gone", "id": 1}, {"to": "there", "id": 1}, {"to": "made", "id": 1}]
    async with sink(faulty.address).open(CONTEXT) as writer:
        rejected = await writer.write(batch(values))
        cause = "expected the name of a topic, found gone, which is none; create it"
        assert told(rejected) == [(0, cause)]
        faulty.fail_topic("gone", 0)
        assert told(await writer.write(batch(values))) == [(0, cause)]  # for a while
        monkeypatch.setattr("streamflow_connectors.kafka.names.anyio.current_time", lambda: 1e9)
        assert await writer.write(batch(values)) is None
        monkeypatch.undo()
        await writer.flush()
    assert len(await consume(faulty.address, "gone", 1)) == 1
    assert len(await consume(faulty.address, "there", 3)) == 3


@pytest.mark.asyncio
async def test_brokers_that_stay_away_are_no_missing_topics(faulty: EmbeddedKafka) -> None:
    async with sink(faulty.address, retry_for=0.5).open(CONTEXT) as writer:
        faulty.set_reachable(False)
        with pytest.raises(ConnectorError, match=r"out: expected .* to be back within 0\.5 s"):
            await writer.write(batch([{"to": "t", "id": 1}]))


@pytest.mark.asyncio
async def test_records_without_a_topic_become_dead_letters(cluster: Cluster) -> None:
    topic = await cluster.create_topic()
    values = tuple({"to": name, "id": n} for n, name in enumerate([topic, "?", topic]))
    graph = graph_of(ListSource(values=values), sink(cluster.address, inputs=("in",)))
    async with graph.open() as run:
        await run.wait()
        assert run.stats().nodes["out0"].rejected == 1
    assert len(await consume(cluster.address, topic, 2)) == 2


@pytest.mark.asyncio
async def test_exactly_once_takes_topics_of_fields(cluster: Cluster, real_broker: str) -> None:
    source_topic = await cluster.create_topic()
    topics = [await cluster.create_topic() for _ in range(2)]
    source = KafkaSource(
        bootstrap_servers=real_broker, topics=(source_topic,), partitions=(0,), group=source_topic
    )
    context = Context("out", sources={"in": source})
    declared = sink(real_broker, inputs=("in",), delivery="exactly_once")
    place = (("topic", source_topic), ("partition", 0))
    rows = [{"to": topics[n % 2], "id": n} for n in range(4)]
    written = Batch(rows, [Partition("in", place, "offset")] * 4, range(4))
    for _ in range(2):  # the second time all of it is published already
        async with declared.open(context) as writer:
            assert await writer.write(written) is None
            await writer.flush()
    for number, topic in enumerate(topics):
        records = await consume(real_broker, topic, 2)
        assert [record.key for record in records] == [b"%d" % n for n in (number, number + 2)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"topic": {"feild": "to"}}, "topic.feild: expected an option of"),
        ({"topic": {}}, "topic.field: expected the option field, found none"),
        ({"topic": 3}, "topic: expected"),
        ({"topic": ""}, "topic: expected text of 1 or more characters"),
        ({"key": {"field": ""}}, "key.field: expected text of 1 or more"),
        ({"key": "id"}, "key: expected"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(GraphError, match=expected):
        sink("a:1", **options)


def test_a_route_reads_back() -> None:
    graph = Graph(
        name="g", sources={"in": MemorySource()}, sinks={"out": sink("a:1", inputs=("in",))}
    )
    assert "topic: {field: to}" in graph.to_yaml()
    found = sink("a:1", topic=FromField(field="to"))
    assert found == sink("a:1")

"""Topics found by a pattern, those that come up later included."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import anyio
import pytest

from streamflow.contracts import Context, Reader, Resume
from streamflow.errors import ConnectorError, GraphError
from streamflow.records import Partition, Place
from streamflow_connectors.kafka import KafkaSource
from streamflow_connectors.kafka.reader import KafkaReader
from tests.kafka.clients import Cluster, committed, produce

pytestmark = pytest.mark.kafka

CONTEXT = Context("in")
GROUPS: list[dict[str, Any]] = [{}, {"group": "g"}, {"group": "g", "partitions": (0,)}]


def source(address: str, prefix: str, **options: Any) -> KafkaSource:
    if "group" in options:
        options["group"] = f"{options['group']}-{prefix}"
    return KafkaSource(
        bootstrap_servers=address, pattern=rf"{prefix}-(a|b\d*)", refresh=0.2, **options
    )


async def filled(cluster: Cluster) -> str:
    """Make three topics, of which the pattern matches one, and return what they begin with."""
    name = uuid4().hex
    for topic in ("a", "a2", "xa"):
        await cluster.create_topic(name=f"{name}-{topic}")
        await produce(cluster.address, f"{name}-{topic}", [f'"{topic}"'.encode()])
    return name


async def values_of(reader: Reader, count: int) -> list[Any]:
    values: list[Any] = []
    with anyio.fail_after(60):
        while len(values) < count:
            fetch = await reader.receive()
            values += fetch.batch.rows()
            await reader.commit(fetch.ends)
    return values


@pytest.mark.asyncio
@pytest.mark.parametrize("start", ["earliest", "latest"])
@pytest.mark.parametrize("options", GROUPS)
async def test_topics_that_come_up_are_read_from_their_beginning(
    cluster: Cluster, real_broker: str, options: dict[str, Any], start: Any
) -> None:
    prefix = await filled(cluster)
    async with source(real_broker, prefix, start=start, **options).open(CONTEXT) as reader:
        if start == "earliest":
            assert await values_of(reader, 1) == ["a"]
        await cluster.create_topic(name=f"{prefix}-b7")
        await produce(real_broker, f"{prefix}-b7", [b'"b"'])
        await produce(real_broker, f"{prefix}-a", [b'"later"'])
        assert sorted(await values_of(reader, 2)) == ["b", "later"]
        await produce(real_broker, f"{prefix}-b7", [b'"last"'])
        assert await values_of(reader, 1) == ["last"]


@pytest.mark.asyncio
async def test_a_member_finishes_what_it_holds_before_a_new_topic_is_shared_out(
    cluster: Cluster, real_broker: str
) -> None:
    prefix = await filled(cluster)
    declared = source(real_broker, prefix, group="g", rebalance_timeout=120.0)
    async with declared.open(CONTEXT) as reader:
        assert isinstance(reader, KafkaReader)
        fetch = await reader.receive()
        await cluster.create_topic(name=f"{prefix}-b")
        await produce(real_broker, f"{prefix}-b", [b'"b"'])
        with anyio.fail_after(60):
            while reader._consumer._subscription.subscription.assignment is not None:
                with anyio.move_on_after(0.05):
                    assert not len((await reader.receive()).batch)
        assert reader.behind() is None
        await reader.commit(fetch.ends)
        assert await values_of(reader, 1) == ["b"]
    assert fetch.batch.rows() == ["a"]
    assert await committed(real_broker, f"g-{prefix}", f"{prefix}-a") == 1


@pytest.mark.asyncio
async def test_all_that_match_at_the_start_are_read_to_their_ends(cluster: Cluster) -> None:
    prefix = await filled(cluster)
    declared = source(cluster.address, prefix, stop_at_end=True)
    async with declared.open(CONTEXT) as reader:
        assert await values_of(reader, 1) == ["a"]
        with pytest.raises(anyio.EndOfStream):
            await reader.receive()


@pytest.mark.asyncio
async def test_positions_are_stored_and_resumed_topic_by_topic(
    cluster: Cluster, real_broker: str
) -> None:
    prefix = await filled(cluster)
    topics = [f"{prefix}-a", f"{prefix}-b"]
    await cluster.create_topic(name=topics[1])
    await produce(real_broker, topics[1], [b"1", b"2"])
    declared = source(real_broker, prefix, group="g", stop_at_end=True)
    ends: dict[Partition, int] = {}
    async with declared.open(CONTEXT) as reader:
        while len(ends) < 2:
            ends |= (await reader.receive()).ends
        await reader.commit(ends)
    assert [await committed(real_broker, f"g-{prefix}", topic) for topic in topics] == [1, 2]
    positions: dict[Place, int] = {(("topic", topics[1]), ("partition", 0)): 1}
    resumed = Context("in", is_checkpointed=True, resume=Resume(positions))
    async with source(real_broker, prefix, stop_at_end=True).open(resumed) as reader:
        assert sorted(map(str, await values_of(reader, 2))) == ["2", "a"]


@pytest.mark.asyncio
async def test_a_pattern_that_matches_nothing_is_an_error(cluster: Cluster) -> None:
    declared = KafkaSource(
        bootstrap_servers=cluster.address, pattern="no-such-.*", connect_timeout=0.5
    )
    with pytest.raises(ConnectorError, match=r"in: expected a topic that matches no-such-\.\*"):
        async with declared.open(CONTEXT):
            pass


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "pattern: expected either topics or a pattern, found none; list the topics"),
        ({"topics": ("t",), "pattern": "t"}, "either topics or a pattern, found both"),
        ({"pattern": "("}, r"a regular expression, found \(: "),
        ({"pattern": "t", "refresh": 0}, "refresh: expected a number greater than 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(GraphError, match=expected):
        KafkaSource(bootstrap_servers="a:1", **options)

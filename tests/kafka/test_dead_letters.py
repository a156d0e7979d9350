"""Dead letters of topics, and in topics."""

from pathlib import Path

import anyio
import orjson
import pytest

from streamflow.graph import Graph
from streamflow.operators.functions import Map
from streamflow.runtime.letters import Letter, LetterFile
from streamflow.runtime.replay import open_replay, plan_replay
from streamflow.testing import ListSink
from streamflow_connectors.files import FileSink
from streamflow_connectors.kafka import KafkaSink, KafkaSource
from tests.kafka.clients import Cluster, committed, consume, produce

pytestmark = [pytest.mark.kafka, pytest.mark.asyncio]

PAYLOADS = [b'{"n": 1}', b'{"n": ', b'{"n": "two"}', b'{"n": 3, "pad": "' + 2000 * b"p" + b'"}']


def half(value: object) -> object:
    assert isinstance(value, dict)
    return value | {"half": value["n"] / 2}


def mended(value: object) -> object:
    return {"n": value["n"]} if isinstance(value, dict) else None


async def run(graph: Graph) -> None:
    with anyio.fail_after(60):
        async with graph.open() as opened:
            await opened.wait()


async def test_topics_reject_and_keep_letters_which_are_replayed_from_a_file(
    cluster: Cluster, tmp_path: Path
) -> None:
    topic_in, topic_out, topic_dead = [await cluster.create_topic() for _ in range(3)]
    await produce(cluster.address, topic_in, PAYLOADS, headers=[("h", b"\xff")])
    source = KafkaSource(
        bootstrap_servers=cluster.address, topics=(topic_in,), group="g", stop_at_end=True
    )
    sink = KafkaSink(
        bootstrap_servers=cluster.address,
        topic=topic_out,
        inputs=("half",),
        max_request_size=1000,
    )
    letters = KafkaSink(bootstrap_servers=cluster.address, topic=topic_dead)
    graph = Graph(
        name="topics",
        sources={"rows": source},
        operators={"half": Map(inputs=("rows",), function=half)},
        sinks={"out": sink},
        dead_letter=letters,
    )
    await run(graph)
    assert await committed(cluster.address, "g", topic_in) == 4
    found = await consume(cluster.address, topic_dead, 3)
    assert {record.key for record in found} == {b"k"}  # a letter keeps the key of its record
    assert {record.headers for record in found} == {(("h", b"\xff"),)}

    # A topic of letters becomes a file by a graph of two nodes.
    dead = source.model_copy(update={"topics": (topic_dead,), "group": None})
    path = tmp_path / "dead.jsonl"
    copied = FileSink(path=str(path), inputs=("dead",))
    await run(Graph(name="copy", sources={"dead": dead}, sinks={"file": copied}))
    read = [letter async for batch in LetterFile(path).batches() for letter in batch]
    by_offset = {letter.offset: letter for letter in read if isinstance(letter, Letter)}
    assert {offset: letter.payload for offset, letter in by_offset.items()} == {
        offset: PAYLOADS[offset] for offset in (1, 2, 3)
    }
    causes = {offset: (letter.node, letter.cause[:18]) for offset, letter in by_offset.items()}
    assert causes == {
        1: ("rows", "expected JSON, fou"),
        2: ("half", "TypeError: unsuppo"),
        3: ("out", "expected at most 1"),
    }
    first = by_offset[2]
    assert (first.source, first.attempts, first.key) == ("rows", 1, "k")
    assert first.position == {"topic": topic_in, "partition": 0, "offset": 2}
    assert first.headers == (("h", b"\xff"),)

    # What can be mended is delivered; the torn one becomes a letter in the topic again.
    listed = ListSink(inputs=("half",))
    changed = {"operators": {"half": Map(inputs=("rows",), function=mended)}}
    replayed = graph.model_copy(update=changed | {"sinks": {"out": listed}})
    plan = await plan_replay(replayed, LetterFile(path))
    async with open_replay(replayed, plan) as opened:
        await opened.wait()
    plan.finish()
    assert sorted(str(value["n"]) for value in listed.probe.values) == ["3", "two"]
    again = orjson.loads((await consume(cluster.address, topic_dead, 4))[-1].value)
    assert (again["attempts"], again["position"]["offset"]) == (2, 1)
    assert await committed(cluster.address, "g", topic_in) == 4

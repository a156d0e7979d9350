from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import anyio.lowlevel
import pytest
import trio
from redis.asyncio import Redis

from streamflow import Graph
from streamflow.contracts import Context, Fetch, Reader, Resume
from streamflow.errors import ConnectorError, GraphError
from streamflow.records import Partition, Place, Record
from streamflow.testing import (
    ListSource,
    check_live_source,
    check_rereading_source,
    check_sink,
    check_source,
)
from streamflow.testing.connectors import make_batch
from streamflow_connectors.redis import RedisSink, RedisSource
from tests.redis.server import PASSWORD, Server, running
from tests.traces import PLENTY

CONTEXT = Context("in")
VALUES = [{"x": index, "y": f"text {index}"} for index in range(50)]


@asynccontextmanager
async def client(server: Server) -> AsyncIterator[Any]:
    async with Redis(port=server.port) as made:
        yield made


async def add(server: Server, stream: str, *entries: dict[str, Any], ids: str = "*") -> None:
    async with client(server) as redis:
        for number, entry in enumerate(entries):
            await redis.xadd(stream, entry, id=ids.replace("N", str(number)))


async def add_values(server: Server, stream: str, *values: Any) -> None:
    await add(server, stream, *({"value": json.dumps(value)} for value in values))


def source(server: Server, stream: str, **options: Any) -> RedisSource:
    return RedisSource(**{"url": server.url, "streams": (stream,), "stop_at_end": True, **options})


def sink(server: Server, stream: Any, **options: Any) -> RedisSink:
    return RedisSink(url=server.url, stream=stream, **options)


async def read_all(declared: RedisSource, context: Context = CONTEXT) -> list[Fetch]:
    fetches: list[Fetch] = []
    with anyio.fail_after(PLENTY):
        async with declared.open(context) as reader:
            try:
                while True:
                    fetches.append(await reader.receive())
            except anyio.EndOfStream:
                return fetches


async def values_of(declared: RedisSource, context: Context = CONTEXT) -> list[Any]:
    return [value for fetch in await read_all(declared, context) for value in fetch.batch.rows()]


async def receive(reader: Reader, count: int) -> tuple[list[Any], dict[Partition, int]]:
    values: list[Any] = []
    ends: dict[Partition, int] = {}
    with anyio.fail_after(PLENTY):
        while len(values) < count:
            fetch = await reader.receive()
            values += fetch.batch.rows()
            ends |= fetch.ends
    return values, ends


@pytest.fixture
def stream() -> str:
    """A name that nobody else has."""
    return uuid4().hex


@pytest.mark.asyncio
@pytest.mark.parametrize("group", [None, "g"])
async def test_a_stream_that_ends_conforms(server: Server, group: str | None) -> None:
    names: list[str] = []

    async def fill() -> None:
        for _ in range(3):
            names.append(uuid4().hex)
            await add_values(server, names[-1], *VALUES)

    await fill()
    left = iter(names)
    # In a group the entries of another test are acknowledged, so each has a stream of its own.
    await check_source(
        lambda: source(server, next(left) if group else names[0], group=group), VALUES
    )


@pytest.mark.asyncio
async def test_a_stream_goes_on_at_any_position(server: Server, stream: str) -> None:
    await add_values(server, stream, *VALUES)
    await check_rereading_source(lambda: source(server, stream), VALUES)


@pytest.mark.asyncio
async def test_a_live_stream_conforms(server: Server, stream: str) -> None:
    for options in ({}, {"group": "g"}):
        declared = source(server, f"{stream}{len(options)}", stop_at_end=False, **options)

        async def send_to(_reader: Reader, value: Any, name: str = declared.streams[0]) -> None:
            await add_values(server, name, value)

        await check_live_source(lambda given=declared: given, send_to, VALUES[:3])  # type: ignore[misc]


@pytest.mark.asyncio
async def test_a_sink_conforms(server: Server, stream: str) -> None:
    await check_sink(
        lambda: sink(server, stream),
        lambda: values_of(source(server, stream)),
        VALUES,
        bad={"x": float("nan"), "y": ""},
    )


@pytest.mark.asyncio
async def test_a_record_keeps_value_key_and_time(server: Server, stream: str) -> None:
    written = [
        Record(1, key="é", timestamp_ms=5000),
        Record(2, key=b"\xff", timestamp_ms=None),
        Record(3, key=7),
        Record(4),
    ]
    async with sink(server, stream, payload="data").open(CONTEXT) as writer:
        await writer.write(make_batch(written))
    records = [
        record
        for fetch in await read_all(source(server, stream, payload="data"))
        for record in fetch.batch.records()
    ]
    assert [record.value for record in records] == [1, 2, 3, 4]
    assert [record.key for record in records] == ["é", b"\xff", "7", None]
    assert records[0].timestamp_ms == 5000
    async with client(server) as redis:
        entries = await redis.xrange(stream)
    for (entry, _), record in zip(entries, records, strict=True):
        milliseconds, sequence = map(int, entry.split(b"-"))
        assert record.position == {"stream": stream, "position": milliseconds * 2**20 + sequence}
        if record.value > 1:
            assert record.timestamp_ms == milliseconds
    assert [set(fields) - {b"time"} for _, fields in entries] == [{b"data", b"key"}] * 3 + [
        {b"data"}
    ]


@pytest.mark.asyncio
async def test_fields_of_entries_may_be_those_of_records(server: Server, stream: str) -> None:
    rows = [{"a": 1.5, "b": "x", "c": None, "d": [1, {"e": 2}]}, {"a": 2}]
    async with sink(server, stream, payload=None).open(CONTEXT) as writer:
        rejected = await writer.write(make_batch([*rows, 5, {}]))
    assert rejected is not None
    assert list(rejected.indices) == [2, 3]
    await add(server, stream, {"t": "é", "n": "7"})
    await add(server, stream, {"t": b"\xff"})
    fetches = await read_all(source(server, stream, payload=None))
    values = [value for fetch in fetches for value in fetch.batch.rows()]
    assert values == [
        {"a": 1.5, "b": "x", "c": None, "d": '[1,{"e":2}]'},
        {"a": 2},
        {"t": "é", "n": 7},
    ]
    [bad] = [fetch.rejected for fetch in fetches if fetch.rejected]
    assert bad.causes[0].startswith("expected fields of text in UTF-8, found")


@pytest.mark.asyncio
async def test_what_cannot_be_read_is_rejected(server: Server, stream: str) -> None:
    await add(server, stream, {"value": "1"}, {"other": "2"}, {"value": "{"}, {"value": "3"})
    fetches = await read_all(source(server, stream))
    assert [value for fetch in fetches for value in fetch.batch.rows()] == [1, 3]
    causes = [cause for fetch in fetches if fetch.rejected for cause in fetch.rejected.causes]
    assert causes[0] == "expected the field value with the value, found only other"
    assert "JSON" in causes[1]


@pytest.mark.asyncio
async def test_a_format_of_ones_own(server: Server, stream: str) -> None:
    declared = {"csv": {"fields": ["a", "b"]}}
    async with sink(server, stream, format=declared).open(CONTEXT) as writer:
        await writer.write(make_batch([{"a": 1, "b": 2}]))
    assert await values_of(source(server, stream, format=declared)) == [{"a": 1, "b": 2}]
    async with client(server) as redis:
        [(_, fields)] = await redis.xrange(stream)
    assert fields == {b"value": b"1,2"}


@pytest.mark.asyncio
async def test_records_name_their_streams(server: Server, stream: str) -> None:
    values = [{"to": f"{stream}a", "n": 1}, {"n": 2}, {"to": f"{stream}b", "n": 3}, {"to": 4}]
    async with sink(server, {"field": "to"}).open(CONTEXT) as writer:
        rejected = await writer.write(make_batch(values))
    assert rejected is not None
    assert list(rejected.indices) == [1, 3]
    both = source(server, "", streams=(f"{stream}a", f"{stream}b"))
    assert sorted(value["n"] for value in await values_of(both)) == [1, 3]


@pytest.mark.asyncio
async def test_a_stream_keeps_no_more_than_said(server: Server, stream: str) -> None:
    async with sink(server, stream, max_length=100).open(CONTEXT) as writer:
        for start in range(0, 5000, 1000):
            await writer.write(make_batch(list(range(start, start + 1000))))
    async with client(server) as redis:
        assert 100 <= await redis.xlen(stream) < 1000


@pytest.mark.asyncio
async def test_latest_begins_at_the_end_as_it_is_when_the_source_opens(
    server: Server, stream: str
) -> None:
    await add_values(server, stream, 1)
    for options in ({}, {"group": "g"}):
        declared = source(server, stream, start="latest", stop_at_end=False, **options)
        async with declared.open(CONTEXT) as reader:
            await add_values(server, stream, 2)
            assert (await receive(reader, 1))[0] == [2]
    context = Context("in", is_checkpointed=True)
    place: Place = (("stream", stream),)
    async with source(server, stream, start="latest", stop_at_end=False).open(context) as reader:
        [(partition, position)] = (await reader.receive()).ends.items()
    assert partition.place == place
    await add_values(server, stream, 3)
    resumed = Context("in", is_checkpointed=True, resume=Resume({place: position}))
    assert await values_of(source(server, stream, start="latest"), resumed) == [3]


@pytest.mark.asyncio
async def test_a_group_shares_out_and_gives_again_what_was_not_finished(
    server: Server, stream: str
) -> None:
    await add_values(server, stream, *range(10))
    mine = source(server, stream, group="g", consumer="a")
    async with mine.open(CONTEXT) as reader:
        _, ends = await receive(reader, 10)
        [(partition, _)] = ends.items()
        async with client(server) as redis:
            entries = await redis.xrange(stream)
        milliseconds, sequence = map(int, entries[4][0].split(b"-"))
        await reader.commit({partition: milliseconds * 2**20 + sequence})  # up to the fourth
    async with client(server) as redis:
        assert (await redis.xpending(stream, "g"))["pending"] == 6
    assert await values_of(source(server, stream, group="g", consumer="b")) == []
    await add_values(server, stream, 10)
    async with mine.open(CONTEXT) as reader:
        values, ends = await receive(reader, 7)
        await reader.commit(ends)
    assert values == [4, 5, 6, 7, 8, 9, 10]
    assert await values_of(mine) == []


@pytest.mark.asyncio
async def test_what_a_checkpoint_has_is_not_learned_again(server: Server, stream: str) -> None:
    await add_values(server, stream, *range(4))
    declared = source(server, stream, group="g")
    async with declared.open(CONTEXT) as reader:
        await receive(reader, 4)  # and a crash before anything is acknowledged
    async with client(server) as redis:
        entries = await redis.xrange(stream)
        await redis.xdel(stream, entries[2][0])
    milliseconds, sequence = map(int, entries[1][0].split(b"-"))
    place: Place = (("stream", stream),)
    resume = Resume({place: milliseconds * 2**20 + sequence + 1})
    context = Context("in", is_checkpointed=True, resume=resume)
    assert await values_of(declared, context) == [3]
    async with client(server) as redis:  # what is learned or deleted is pending no more
        assert (await redis.xpending(stream, "g"))["pending"] == 1


@pytest.mark.asyncio
@pytest.mark.parametrize("group", [None, "g"])
async def test_a_server_that_restarts_loses_nothing(
    own_server: Server, stream: str, group: str | None
) -> None:
    declared = source(own_server, stream, stop_at_end=False, group=group)
    received: list[Any] = []
    with anyio.fail_after(PLENTY):
        async with (
            declared.open(CONTEXT) as reader,
            sink(own_server, stream).open(Context("out")) as writer,
        ):
            for start in range(0, 400, 100):
                await writer.write(make_batch(list(range(start, start + 100))))
                values, ends = await receive(reader, 50)
                received += values
                own_server.stop()
                own_server.start()
                await reader.commit(ends)
            while len(received) < 400:
                values, ends = await receive(reader, 1)
                received += values
                await reader.commit(ends)
            while reader.retrying() is not None:  # type: ignore[attr-defined]
                await anyio.lowlevel.checkpoint()  # until the next answer comes
            assert reader.report()["failures that were tried again"] >= 1  # type: ignore[attr-defined]
            assert writer.report()["failures that were tried again"] >= 0  # type: ignore[attr-defined]
    assert received == list(range(400))


@pytest.mark.asyncio
async def test_entries_whose_answer_was_lost_with_the_connection_are_read(
    own_server: Server, stream: str
) -> None:
    declared = source(own_server, stream, stop_at_end=False, group="g", consumer="a")
    async with declared.open(CONTEXT) as reader, client(own_server) as redis:
        await add_values(own_server, stream, 1)
        assert (await receive(reader, 1))[0] == [1]
        # In one step: the reader loses its connection, and an entry is handed out in its name.
        async with redis.pipeline(transaction=True) as pipeline:
            pipeline.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            pipeline.xadd(stream, {"value": "2"})
            pipeline.xreadgroup("g", "a", {stream: ">"})
            pipeline.xadd(stream, {"value": "3"})
            await pipeline.execute()
        assert (await receive(reader, 2))[0] == [2, 3]


@pytest.mark.asyncio
async def test_a_server_that_stays_away_is_an_error(own_server: Server, stream: str) -> None:
    options = {"retry_for": 0.5, "stop_at_end": False}
    expected = r"expected redis://127\.0\.0\.1:\d+ to be reached within 0\.5 s, found "
    async with (
        source(own_server, stream, **options).open(CONTEXT) as reader,
        sink(own_server, stream, retry_for=0.5).open(Context("out")) as writer,
    ):
        own_server.stop()
        with pytest.raises(ConnectorError, match=f"in: {expected}"):
            await receive(reader, 1)
        with pytest.raises(ConnectorError, match=f"out: {expected}"):
            await writer.write(make_batch([1]))
        assert "retrying redis://" in str(writer.retrying())  # type: ignore[attr-defined]
    for declared in (source(own_server, stream, **options), sink(own_server, "s", retry_for=0.5)):
        with pytest.raises(ConnectorError, match=expected):
            async with declared.open(CONTEXT):
                pass


@pytest.mark.asyncio
async def test_a_server_that_does_not_answer_is_given_up(stream: str) -> None:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as deaf:
        port = deaf.extra(anyio.abc.SocketAttribute.local_port)
        declared = RedisSink(
            url=f"rediss://127.0.0.1:{port}", stream=stream, connect_timeout=0.2, retry_for=0.3
        )
        with pytest.raises(ConnectorError, match="found TimeoutError"):
            async with declared.open(CONTEXT):
                pass


@pytest.mark.asyncio
async def test_a_login_is_used(tmp_path: Path, stream: str) -> None:
    acl = f"alice on >{PASSWORD} ~* +@all"
    with running(tmp_path, "--requirepass", PASSWORD, "--user", *acl.split()) as server:
        for login in ({"password": PASSWORD}, {"username": "alice", "password": PASSWORD}):
            async with sink(server, stream, **login).open(CONTEXT) as writer:
                await writer.write(make_batch([1]))
        for login in ({}, {"password": "s3cret"}):
            with pytest.raises(ConnectorError, match=r"in: .* to go along, found") as caught:
                async with sink(server, stream, **login).open(CONTEXT):
                    pass
            assert "s3cret" not in str(caught.value)
        url = f"{server.url}/1"
        assert await values_of(source(server, stream, url=url, password=PASSWORD)) == []


@pytest.mark.asyncio
async def test_what_is_no_stream_is_an_error(server: Server, stream: str) -> None:
    async with client(server) as redis:
        await redis.set(stream, "text")
    with pytest.raises(ConnectorError, match="WRONGTYPE"):
        async with sink(server, stream).open(CONTEXT) as writer:
            await writer.write(make_batch([1]))
    with pytest.raises(ConnectorError, match=r"in: .*WRONGTYPE"):
        await values_of(source(server, stream))


@pytest.mark.asyncio
async def test_ids_that_make_no_position_are_an_error(server: Server, stream: str) -> None:
    await add(server, stream, {"value": "1"}, ids="5-1048576")
    with pytest.raises(ConnectorError, match=r"found 5-1048576; let the server give ids"):
        await values_of(source(server, stream))


@pytest.mark.asyncio
async def test_a_graph_reads_and_writes(server: Server, stream: str) -> None:
    values = tuple({"n": n} for n in range(20))
    graph = Graph(
        name="fill",
        sources={"in": ListSource(values=values)},
        sinks={"out": sink(server, stream, inputs=("in",))},
    )
    copy = Graph(
        name="copy",
        sources={"in": source(server, stream, group="g")},
        sinks={"out": sink(server, f"{stream}-copy", inputs=("in",))},
    )
    assert [promise.delivered for promise in copy.promises()] == ["at least once"]
    with anyio.fail_after(PLENTY):
        for each in (graph, copy):
            async with each.open() as run:
                await run.wait()
    assert await values_of(source(server, f"{stream}-copy")) == list(values)
    async with client(server) as redis:
        assert (await redis.xpending(stream, "g"))["pending"] == 0


@pytest.mark.asyncio
async def test_nothing_is_left_behind(server: Server, stream: str) -> None:
    before = asyncio.all_tasks()
    for patience in (0.001, 0.01, 0.2):
        with anyio.move_on_after(patience):
            async with source(server, stream, stop_at_end=False, group="g").open(CONTEXT) as reader:
                while True:
                    await reader.receive()
        assert asyncio.all_tasks() <= before


def test_encryption_and_certificates_become_the_drivers(tmp_path: Path) -> None:
    from streamflow_connectors.redis.connection import _client

    declared = RedisSink(
        url="rediss://host", stream="s", ca_file="ca.pem", cert_file="c.pem", key_password="hush"
    )
    options = _client(declared, Context("out", tmp_path)).connection_pool.connection_kwargs
    assert options["ssl_ca_certs"] == str(tmp_path / "ca.pem")
    assert options["ssl_certfile"] == str(tmp_path / "c.pem")
    assert options["ssl_password"] == "hush"
    assert (options["host"], options["port"]) == ("host", 6379)


@pytest.mark.parametrize("options", [{"streams": ("s",)}, {"stream": "s"}])
def test_trio_is_refused(options: dict[str, Any]) -> None:
    declared: Any = RedisSource if "streams" in options else RedisSink

    async def open_node() -> None:
        async with declared(url="redis://h", **options).open(Context("node")):
            pass

    with pytest.raises(ConnectorError, match="node: expected the event loop of asyncio"):
        trio.run(open_node)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"url": "http://h"}, "url: expected a URL that begins with redis:// or rediss://"),
        ({"url": "redis://h/x"}, "url: expected redis://host:port/database, found /x"),
        ({"streams": ()}, "streams: expected a list of 1 or more"),
        ({"consumer": "a"}, "consumer: expected a group with it, found none"),
        ({"group": ""}, "group"),
        ({"start": "now"}, "start: expected one of earliest, latest"),
        ({"payload": None, "format": "raw"}, "format: expected no format without a payload"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(GraphError, match=expected):
        RedisSource(**{"url": "redis://h", "streams": ("s",), **options})
    with pytest.raises(GraphError, match="max_length"):
        RedisSink(url="redis://h", stream="s", max_length=0)


def test_what_can_be_said_without_a_connection() -> None:
    declared = RedisSource(url="redis://host:1/3", streams=("s",), password="hush", group="g")
    assert declared.addresses == ("host:1",)
    assert declared.database == 3
    assert "hush" not in repr(declared) + declared.model_dump_json()
    assert declared.consumer_name
    assert (declared.keeps_positions, declared.rereads) == (True, False)
    alone = RedisSource(url="redis://host", streams=("s",), payload=None)
    assert (alone.keeps_positions, alone.rereads, alone.only_scalars) == (False, True, True)
    assert not declared.only_scalars
    assert declared.decoder(Path(), {}).decode([b"5"]).values == [5]

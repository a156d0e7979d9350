from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio
from websockets.asyncio.server import ServerConnection

from streamflow import Graph
from streamflow.contracts import Context, Reader, Writer
from streamflow.errors import ConnectorError, GraphError
from streamflow.testing import (
    ListSink,
    SinkProbe,
    check_live_source,
    check_sink,
    check_source,
    check_stalled_sink,
)
from streamflow.testing.connectors import make_batch
from streamflow_connectors.websocket import WebSocketSink, WebSocketSource
from tests.certificates import server_tls
from tests.traces import PLENTY
from tests.websocket.server import Handler, serving

VALUES = [{"x": index, "y": f"text {index}"} for index in range(50)]


def sending(*messages: str | bytes, code: int | None = None) -> Handler:
    """Return what sends messages, and closes with a code or else waits."""

    async def handle(connection: ServerConnection) -> None:
        for message in messages:
            await connection.send(message)
        if code is None:
            await connection.wait_closed()
        else:
            await connection.close(code)

    return handle


async def no_news(connection: ServerConnection) -> None:
    await connection.wait_closed()


def in_turn(*handlers: Handler) -> Handler:
    left = list(handlers)

    async def handle(connection: ServerConnection) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(connection)

    return handle


def gathering(received: list[Any], most: int = 10**9) -> Handler:
    """Return what receives so many messages, and then breaks the connection."""

    async def handle(connection: ServerConnection) -> None:
        count = 0
        async for message in connection:
            received.append(message)
            count += 1
            if count == most:
                connection.transport.abort()
                return

    return handle


@asynccontextmanager
async def reading(url: str, folder: Path = Path(), **options: Any) -> AsyncIterator[Reader]:
    with anyio.fail_after(PLENTY):
        async with WebSocketSource(url=url, **options).open(Context("in", folder)) as reader:
            yield reader


@asynccontextmanager
async def writing(url: str, folder: Path = Path(), **options: Any) -> AsyncIterator[Writer]:
    with anyio.fail_after(PLENTY):
        async with WebSocketSink(url=url, **options).open(Context("out", folder)) as writer:
            yield writer


async def receive(reader: Reader, count: int) -> list[Any]:
    values: list[Any] = []
    while len(values) < count:
        values += (await reader.receive()).batch.rows()
    return values


@pytest.mark.asyncio
async def test_a_stream_that_ends_conforms() -> None:
    async with serving(sending(*map(json.dumps, VALUES))) as served:
        # It ends when no busy machine could take that for a pause.
        source = WebSocketSource(url=served.url, end_after=2.0)
        await check_source(lambda: source, VALUES)


@pytest.mark.asyncio
async def test_a_live_stream_conforms() -> None:
    queue: asyncio.Queue[str] = asyncio.Queue()

    async def handle(connection: ServerConnection) -> None:
        while True:
            await connection.send(await queue.get())

    async def send(_reader: Reader, value: Any) -> None:
        await queue.put(json.dumps(value))

    async with serving(handle) as served:
        await check_live_source(lambda: WebSocketSource(url=served.url), send, VALUES[:3])


@pytest.mark.asyncio
async def test_a_sink_conforms() -> None:
    received: list[Any] = []
    expected = iter([len(VALUES), len(VALUES) + 2])

    async def read_back() -> list[Any]:
        count = next(expected)
        while len(received) < count:
            await anyio.lowlevel.checkpoint()
        return [json.loads(message) for message in received]

    async with serving(gathering(received)) as served:
        await check_sink(
            lambda: WebSocketSink(url=served.url),
            read_back,
            VALUES,
            bad={"x": float("nan"), "y": ""},
        )


@pytest.mark.asyncio
async def test_a_sink_whose_server_reads_nothing_waits() -> None:
    async with serving(no_news, compression=None) as served:
        sink = WebSocketSink(url=served.url, linger=0.1)
        await check_stalled_sink(lambda: sink, [{"x": "x" * 2**14}] * 100)


@pytest.mark.asyncio
@pytest.mark.parametrize("code", [1000, 1001, 1011, 1012])
async def test_a_source_that_loses_the_server_connects_again_and_asks_as_before(code: int) -> None:
    asked: list[Any] = []

    async def ask(connection: ServerConnection) -> None:
        asked.append([await connection.recv() for _ in range(2)])
        await sending(str(len(asked)), code=code)(connection)

    async with serving(ask) as served, reading(served.url, first=["a", "b"]) as reader:
        assert await receive(reader, 2) == [1, 2]
        assert reader.report()["failures that were tried again"] >= 1  # type: ignore[attr-defined]
    assert asked[:2] == [["a", "b"], ["a", "b"]]


@pytest.mark.asyncio
async def test_a_sink_that_loses_the_server_goes_on() -> None:
    received: list[Any] = []
    async with serving(gathering(received, most=20)) as served, writing(served.url) as writer:
        for number in range(100):
            await writer.write(make_batch([number]))
            while len(received) <= number < 20:
                await anyio.lowlevel.checkpoint()  # what is under way when it breaks is lost
        assert writer.retrying() is None  # type: ignore[attr-defined]
        assert writer.report()["failures that were tried again"] >= 1  # type: ignore[attr-defined]
    numbers = [int(message) for message in received]
    assert numbers == sorted(set(numbers))
    assert len(served.headers) > 1
    assert numbers[:20] == list(range(20))


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("declared", "value", "message"),
    [
        ("json", {"a": 1}, '{"a":1}'),
        ({"csv": {"fields": ["a"]}}, {"a": 1}, "1"),
        ("raw", b"\xff", b"\xff"),
        ("msgpack", 5, b"\x05"),
    ],
)
async def test_messages_are_text_where_the_format_is(
    declared: Any, value: Any, message: str | bytes
) -> None:
    received: list[Any] = []

    async def echo(connection: ServerConnection) -> None:
        received.append(await connection.recv())
        await sending(received[0])(connection)

    async with serving(in_turn(echo, sending(message))) as served:
        async with writing(served.url, format=declared) as writer:
            await writer.write(make_batch([value]))
            while not received:
                await anyio.lowlevel.checkpoint()
        async with reading(served.url, format=declared) as reader:
            assert await receive(reader, 1) == [value]
    assert received == [message]


@pytest.mark.asyncio
async def test_what_cannot_be_decoded_is_rejected_with_its_bytes() -> None:
    async with serving(sending("1", "{", "2")) as served, reading(served.url) as reader:
        values: list[Any] = []
        rejected: list[Any] = []
        while len(values) < 2:
            fetch = await reader.receive()
            values += fetch.batch.rows()
            rejected += fetch.rejected.batch.originals or () if fetch.rejected else []
    assert (values, rejected) == ([1, 2], [b"{"])


@pytest.mark.asyncio
async def test_what_a_server_sends_to_a_sink_holds_nobody_up() -> None:
    count = 0

    async def talk(connection: ServerConnection) -> None:
        nonlocal count
        for _ in range(200):
            await connection.send("x" * 200_000)  # more than the sockets hold
            await connection.recv()
            count += 1

    async with serving(talk, compression=None) as served, writing(served.url) as writer:
        await writer.write(make_batch(list(range(200))))
        while count < 200:
            await anyio.lowlevel.checkpoint()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {}),
        ({"token": "s3cret"}, {"authorization": "Bearer s3cret"}),
        ({"username": "me", "password": "s3"}, {"authorization": "Basic bWU6czM="}),
        ({"headers": {"x-key": "1"}}, {"x-key": "1"}),
    ],
)
async def test_who_connects(options: dict[str, Any], expected: dict[str, str]) -> None:
    async with serving(sending("1")) as served, reading(served.url, **options) as reader:
        await receive(reader, 1)
    found = {name.lower(): value for name, value in served.headers[0].items()}
    assert expected.items() <= found.items()
    assert ("authorization" in found) == ("authorization" in expected)


@pytest.mark.asyncio
async def test_encryption_checks_the_server(tmp_path: Path) -> None:
    async with serving(sending("1"), server_tls(tmp_path)) as served:
        async with reading(served.url, tmp_path, ca_file="ca.pem") as reader:
            assert await receive(reader, 1) == [1]
        async with reading(served.url, retry_for=0.1) as reader:
            with pytest.raises(ConnectorError, match="CERTIFICATE_VERIFY_FAILED"):
                await reader.receive()


def refusing(status: HTTPStatus) -> Any:
    return lambda connection, _: connection.respond(status, "no")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("status", "options", "expected"),
    [
        (HTTPStatus.UNAUTHORIZED, {}, r"to go along, found .*401; check url, token, username"),
        (HTTPStatus.BAD_GATEWAY, {"retry_for": 0.3}, r"within 0\.3 s, found status 502"),
    ],
)
async def test_a_handshake_that_is_refused_is_an_error(
    status: HTTPStatus, options: dict[str, Any], expected: str
) -> None:
    async with serving(no_news, process_request=refusing(status)) as served:
        url = f"{served.url}?key=s3cret"
        async with reading(url, **options) as reader:
            with pytest.raises(ConnectorError, match=f"in: expected .*{expected}") as caught:
                await reader.receive()
        assert "s3cret" not in str(caught.value)
        with pytest.raises(ConnectorError, match=f"out: expected .*{expected}"):
            async with writing(url, **options):
                pass


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("handler", "options", "expected"),
    [
        (sending("1" * 99), {"max_bytes": 50}, "in: .* a message that is too large for one end"),
        (sending(code=1008), {}, r"to go along, found received 1008 \(policy violation\)"),
    ],
)
async def test_what_a_server_may_not_say(
    handler: Handler, options: dict[str, Any], expected: str
) -> None:
    async with serving(handler) as served, reading(served.url, **options) as reader:
        with pytest.raises(ConnectorError, match=expected):
            await reader.receive()


@pytest.mark.asyncio
async def test_a_message_that_is_too_large_for_the_server_is_an_error() -> None:
    async with serving(gathering([]), max_size=50) as served, writing(served.url) as writer:

        async def write() -> None:
            while True:
                await writer.write(make_batch(["x" * 99]))

        with pytest.raises(ConnectorError, match=r"out: .* too large for one end"):
            await write()


@pytest.mark.asyncio
async def test_a_server_that_is_away_is_waited_for() -> None:
    async with serving(no_news) as served:
        pass
    expected = r"expected ws://.* to be reached within 0\.5 s, found ConnectionRefusedError"
    async with reading(served.url, retry_for=0.5) as reader:
        with pytest.raises(ConnectorError, match=f"in: {expected}"):
            await reader.receive()
        assert "retrying ws://" in str(reader.retrying())  # type: ignore[attr-defined]
    with pytest.raises(ConnectorError, match=f"out: {expected}"):
        async with writing(served.url, retry_for=0.5):
            pass


@pytest.mark.asyncio
async def test_a_server_that_does_not_shake_hands_is_given_up() -> None:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as deaf:
        port = deaf.extra(anyio.abc.SocketAttribute.local_port)
        options: dict[str, Any] = {"connect_timeout": 0.2, "retry_for": 0.3}
        async with reading(f"ws://127.0.0.1:{port}", **options) as reader:
            with pytest.raises(ConnectorError, match="found TimeoutError"):
                await reader.receive()


@pytest.mark.asyncio
async def test_a_graph_reads_and_writes() -> None:
    received: list[Any] = []
    probe = SinkProbe()
    async with serving(sending("1", "2")) as feed, serving(gathering(received)) as out:
        graph = Graph(
            name="g",
            sources={"in": WebSocketSource(url=feed.url, end_after=1.0)},
            sinks={
                "out": WebSocketSink(inputs=("in",), url=out.url),
                "list": ListSink(inputs=("in",), probe=probe),
            },
        )
        assert {promise.delivered for promise in graph.promises()} == {"at most once"}
        with anyio.fail_after(PLENTY):
            async with graph.open() as run:
                await run.wait()
    assert received == ["1", "2"]
    assert probe.values == [1, 2]


@pytest.mark.asyncio
async def test_nothing_is_left_behind() -> None:
    before = asyncio.all_tasks()
    for patience in (0.001, 0.01, 0.2):
        async with serving(sending("1")) as served:
            with anyio.move_on_after(patience):
                async with writing(served.url), reading(served.url) as reader:
                    while True:
                        await reader.receive()
            served.server.close()  # ends those of the server
            await served.server.wait_closed()
            assert asyncio.all_tasks() <= before


@pytest.mark.parametrize("declared", [WebSocketSource, WebSocketSink])
def test_trio_is_refused(declared: Any) -> None:
    async def open_node() -> None:
        async with declared(url="ws://h").open(Context("node")):
            pass

    with pytest.raises(ConnectorError, match="node: expected the event loop of asyncio"):
        trio.run(open_node)


@pytest.mark.parametrize(
    ("declared", "options", "expected"),
    [
        (
            WebSocketSource,
            {"url": "http://h"},
            "with ws:// or wss://, found http; write wss",
        ),
        (WebSocketSource, {"end_after": 0}, "end_after"),
        (WebSocketSource, {"max_bytes": "1 x"}, "max_bytes"),
        (WebSocketSink, {"linger": -1}, "linger"),
        (WebSocketSink, {"first": "a"}, "first: expected a list"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    declared: Any, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(GraphError, match=expected):
        declared(**{"url": "ws://h", **options})


def test_what_can_be_said_without_a_connection() -> None:
    csv = WebSocketSource(url="wss://host", format={"csv": {"fields": ["a"]}})
    assert csv.only_scalars
    assert csv.addresses == ("host:443",)
    assert csv.decoder(Path(), {}).decode([b"5"]).values == {"a": [5]}
    assert not WebSocketSource(url="ws://host").only_scalars

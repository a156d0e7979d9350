from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from queue import Queue
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from streamflow import Graph
from streamflow.contracts import Context, Fetch, Reader
from streamflow.errors import ConnectorError
from streamflow.testing import ListSink, SinkProbe, check_live_source, check_source
from streamflow_connectors.http import HttpSource
from streamflow_connectors.http.reader import LONGEST_DELAY
from streamflow_connectors.network import backlog
from tests.certificates import server_tls
from tests.http.server import Answer, Request, from_queue, in_turn, serving
from tests.traces import PLENTY

pytestmark = pytest.mark.anyio

VALUES = [{"x": index, "y": f"text {index}"} for index in range(50)]


def event(value: Any, **fields: str) -> bytes:
    lines = [f"{name}: {text}\n" for name, text in fields.items()]
    return "".join([*lines, f"data: {json.dumps(value)}\n\n"]).encode()


def stream_of(*events: bytes) -> Answer:
    def answer(request: Request) -> None:
        request.stream()
        request.send(b"".join(events))

    return answer


def no_more(request: Request) -> None:
    """End the stream for good."""
    request.reply(status=204)


def page(body: bytes, status: int = 200, **headers: str) -> Answer:
    return lambda request: request.reply(body, status, **headers)


@asynccontextmanager
async def reading(url: str, folder: Path = Path(), **options: Any) -> AsyncIterator[Reader]:
    source = HttpSource(**{"url": url, "mode": "events", **options})
    with anyio.fail_after(PLENTY):
        async with source.open(Context("in", folder)) as reader:
            yield reader


async def read_to_end(reader: Reader) -> list[Fetch]:
    fetches = []
    try:
        while True:
            fetches.append(await reader.receive())
    except anyio.EndOfStream:
        return fetches


def values_of(fetches: list[Fetch]) -> list[Any]:
    return [value for fetch in fetches for value in fetch.batch.rows()]


async def receive(reader: Reader, count: int) -> list[Any]:
    values: list[Any] = []
    while len(values) < count:
        values += (await reader.receive()).batch.rows()
    return values


async def test_a_stream_that_ends_conforms() -> None:
    with serving(no_more) as server:

        def make() -> HttpSource:
            server.answer = in_turn(stream_of(*map(event, VALUES)), no_more)
            return HttpSource(url=server.url, mode="events")

        await check_source(make, VALUES)


async def test_a_page_conforms() -> None:
    with serving(page(json.dumps(VALUES).encode())) as server:
        # It ends when no busy machine could take that for a pause.
        source = HttpSource(url=server.url, mode="poll", body="list", end_after=2.0)
        await check_source(lambda: source, VALUES)


async def test_a_live_stream_conforms() -> None:
    queue: Queue[bytes | None] = Queue()

    async def send(_reader: Reader, value: Any) -> None:
        queue.put(event(value))

    with serving(from_queue(queue)) as server:
        source = HttpSource(url=server.url, mode="events")
        await check_live_source(lambda: source, send, VALUES[:3])
        queue.put(None)


async def test_events_keep_type_and_id_and_others_are_left_out() -> None:
    events = (event(1), event(2, event="load", id="é"), event(3, event="other"), event(4))
    with serving(in_turn(stream_of(*events), no_more)) as server:
        async with reading(server.url, events=["message", "load"]) as reader:
            fetches = await read_to_end(reader)
    records = [record for fetch in fetches for record in fetch.batch.records()]
    assert [(record.value, dict(record.headers)) for record in records] == [
        (1, {"event": b"message"}),
        (2, {"event": b"load", "id": "é".encode()}),
        (4, {"event": b"message", "id": "é".encode()}),
    ]


async def test_a_lost_stream_is_taken_up_again_after_the_last_event() -> None:
    def cut(request: Request) -> None:
        request.stream()
        request.send(event(1, id="a") + b"data: 2")

    answers = (cut, page(b"", 503), stream_of(event(2, id="b")), no_more)
    with serving(in_turn(*answers)) as server:
        async with reading(server.url) as reader:
            fetches = await read_to_end(reader)
            assert reader.report() == {"failures that were tried again": 3}  # type: ignore[attr-defined]
            assert reader.retrying() is None  # type: ignore[attr-defined]
        told = [request.get("last-event-id") for request in server.requests]
    assert values_of(fetches) == [1, 2]
    assert told == [None, "a", "a", "b"]


async def test_what_cannot_be_decoded_is_rejected_with_its_bytes() -> None:
    with serving(in_turn(stream_of(event(1), b"data: {\n\n", event(2)), no_more)) as server:
        async with reading(server.url) as reader:
            fetches = await read_to_end(reader)
    assert values_of(fetches) == [1, 2]
    [rejected] = [fetch.rejected for fetch in fetches if fetch.rejected]
    assert rejected.batch.originals == [b"{"]
    assert list(rejected.batch.offsets) == [1]


async def test_a_page_is_read_again_once_it_has_changed() -> None:
    answers = (
        page(b"1", etag='"a"', last_modified="Mon, 05 Jan 2026 10:00:00 GMT"),
        page(b"", 304),
        page(b"1"),
        page(b"2"),
        page(b"3"),
    )
    with serving(in_turn(*answers)) as server:
        async with reading(server.url, mode="poll", every=0.01) as reader:
            assert await receive(reader, 3) == [1, 2, 3]
        asked = [
            (request.get("if-none-match"), request.get("if-modified-since"))
            for request in server.requests[:4]
        ]
    same = ('"a"', "Mon, 05 Jan 2026 10:00:00 GMT")
    assert asked == [(None, None), same, same, (None, None)]


async def test_a_page_may_be_read_although_it_is_the_same() -> None:
    with serving(page(b"1", etag="x")) as server:
        async with reading(server.url, mode="poll", every=0.01, repeat=True) as reader:
            assert await receive(reader, 3) == [1, 1, 1]
        assert not any("if-none-match" in request for request in server.requests)


async def test_a_page_is_asked_for_no_more_often_than_said() -> None:
    with serving(page(b"1")) as server:
        async with reading(
            server.url, mode="poll", every=1000.0, repeat=True, end_after=0.5
        ) as reader:
            assert values_of(await read_to_end(reader)) == [1]
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("body", "content", "values", "causes"),
    [
        ("record", b"[1, 2]", [[1, 2]], []),
        ("lines", b"1\r\n\n{\n2", [1, 2], ["JSON"]),
        ("list", b'[1, {"x": [2]}]', [1, {"x": [2]}], []),
        ("list", b"{}", [], ["expected a JSON list, found dict"]),
        ("list", b"[", [], ["expected a JSON list, found"]),
    ],
)
async def test_what_a_page_is(
    body: str, content: bytes, values: list[Any], causes: list[str]
) -> None:
    with serving(page(content)) as server:
        async with reading(server.url, mode="poll", body=body) as reader:
            fetch = await reader.receive()
    assert fetch.batch.rows() == values
    found = fetch.rejected.causes if fetch.rejected else []
    assert len(found) == len(causes)
    assert all(cause in text for cause, text in zip(causes, found, strict=True))


async def test_a_format_of_ones_own() -> None:
    csv = {"csv": {"fields": ["a", "b"]}}
    with serving(page(b"1,2\n3,4\n")) as server:
        async with reading(server.url, mode="poll", body="lines", format=csv) as reader:
            assert await receive(reader, 2) == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {}),
        ({"token": "s3cret"}, {"authorization": "Bearer s3cret"}),
        ({"username": "me", "password": "s3"}, {"authorization": "Basic bWU6czM="}),
        ({"headers": {"x-key": "1"}}, {"x-key": "1"}),
    ],
)
async def test_who_asks(options: dict[str, Any], expected: dict[str, str]) -> None:
    with serving(page(b"1")) as server:
        async with reading(server.url, mode="poll", **options) as reader:
            await reader.receive()
        [request] = server.requests
    found = {name.lower(): value for name, value in request.items()}
    assert expected.items() <= found.items()
    assert ("authorization" in found) == ("authorization" in expected)


async def test_encryption_checks_the_server(tmp_path: Path) -> None:
    with serving(page(b"1"), server_tls(tmp_path)) as server:
        async with reading(server.url, tmp_path, mode="poll", ca_file="ca.pem") as reader:
            assert await receive(reader, 1) == [1]
        with pytest.raises(ConnectorError, match="CERTIFICATE_VERIFY_FAILED"):
            async with reading(server.url, mode="poll", retry_for=0.1) as reader:
                await reader.receive()
    with pytest.raises(ConnectorError, match="in: expected certificates and key in PEM"):
        async with reading("https://a/", tmp_path, ca_file="none.pem"):
            pass


@pytest.mark.parametrize(
    ("answer", "options", "expected"),
    [
        (page(b"", 401), {}, "in: expected an answer from .*/feed, found 401 Unauthorized; check"),
        (page(b"1"), {}, "expected text/event-stream from .*, found none; check url, or use mode"),
        (stream_of(b"data: " + b"1" * 99), {"max_bytes": 50}, "events of at most 50 bytes"),
        (page(b"1" * 99), {"mode": "poll", "max_bytes": 50}, "a page of at most 50 bytes"),
        (page(b"", 500), {"retry_for": 0.3}, r"to be reached within 0\.3 s, found 500 Internal"),
    ],
)
async def test_what_a_server_may_not_say(
    answer: Answer, options: dict[str, Any], expected: str
) -> None:
    with serving(answer) as server:
        async with reading(f"{server.url}?key=s3cret", **options) as reader:
            with pytest.raises(ConnectorError, match=expected) as caught:
                await reader.receive()
    assert "s3cret" not in str(caught.value)


async def test_a_server_that_is_away_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(page(b"1")) as server:
        url = server.url
    async with reading(url, mode="poll", retry_for=0.5) as reader:
        with pytest.raises(ConnectorError, match=r"within 0\.5 s, found ConnectError"):
            await reader.receive()
        assert "retrying http://127.0.0.1" in str(reader.retrying())  # type: ignore[attr-defined]


async def test_a_server_is_not_asked_before_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    delays: list[float] = []

    async def sleep(seconds: float) -> None:
        delays.append(seconds)

    monkeypatch.setattr("streamflow_connectors.http.reader.anyio.sleep", sleep)
    answers = (page(b"", 429, retry_after="7"), stream_of(b"retry: 9000000\n\n", event(1)), no_more)
    with serving(in_turn(*answers)) as server:
        async with reading(server.url) as reader:
            assert values_of(await read_to_end(reader)) == [1]
    assert [delay for delay in delays if delay >= 3] == [7, LONGEST_DELAY]


@pytest.mark.parametrize("option", ["read_timeout", "connect_timeout"])
async def test_a_server_that_is_silent_is_asked_again(option: str) -> None:
    queue: Queue[bytes | None] = Queue()
    with serving(in_turn(from_queue(queue), page(b"1"))) as server:
        options: dict[str, Any] = {option: 0.3}
        url = server.url
        async with await anyio.create_tcp_listener(local_host="127.0.0.1") as deaf:
            if option == "connect_timeout":  # nobody shakes hands there
                port = deaf.extra(anyio.abc.SocketAttribute.local_port)
                url, options["retry_for"] = f"https://127.0.0.1:{port}", 0.2
            async with reading(url, mode="poll", **options) as reader:
                if option == "read_timeout":
                    assert await receive(reader, 1) == [1]
                else:
                    with pytest.raises(ConnectorError, match="ConnectTimeout"):
                        await reader.receive()
        queue.put(None)


async def test_no_more_waits_for_a_graph_that_is_slower_than_a_backlog_holds() -> None:
    body = b"x" * 100_000
    most = backlog.MOST_BYTES // len(body)
    events = [b"data: " + body + b"\n\n"] * 300
    with serving(in_turn(stream_of(*events), no_more)) as server:
        async with reading(server.url, format="raw") as reader:
            while reader.behind() != most:
                await anyio.lowlevel.checkpoint()
            received = 0
            while received < len(events):
                for _ in range(100):  # the task has every chance to put more
                    await anyio.lowlevel.checkpoint()
                assert (reader.behind() or 0) <= most
                received += len((await reader.receive()).batch)
    assert received == len(events)


async def test_no_more_records_wait_than_a_backlog_holds() -> None:
    events = [b"data: 1\n\n"] * (2 * backlog.MOST_RECORDS)
    with serving(in_turn(stream_of(*events), no_more)) as server:
        async with reading(server.url) as reader:
            while reader.behind() != backlog.MOST_RECORDS:
                await anyio.lowlevel.checkpoint()
            assert len((await reader.receive()).batch) == backlog.MOST_RECORDS
            assert len(await receive(reader, backlog.MOST_RECORDS)) == backlog.MOST_RECORDS


async def test_a_graph_reads_a_page() -> None:
    probe = SinkProbe()
    with serving(page(b"1\n2\n")) as server:
        graph = Graph(
            name="g",
            sources={"in": HttpSource(url=server.url, mode="poll", body="lines", end_after=0.5)},
            sinks={"out": ListSink(inputs=("in",), probe=probe)},
        )
        [promise] = graph.promises()
        assert (promise.learned, promise.delivered) == (None, "at most once")
        with anyio.fail_after(PLENTY):
            async with graph.open() as run:
                await run.wait()
    assert probe.values == [1, 2]

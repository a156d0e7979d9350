"""The examples of the page about connectors work as written, with servers on this machine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis

from streamflow import Graph
from streamflow_connectors.http import HttpSource
from streamflow_connectors.redis import RedisSink, RedisSource
from streamflow_connectors.websocket import WebSocketSink, WebSocketSource
from tests.http.server import Request, serving
from tests.redis.server import running
from tests.test_docs import blocks
from tests.traces import PLENTY
from tests.websocket.server import serving as serving_websocket

PAGE = "docs/connectors.md"
SHARED = {"type", "inputs", "merge", "overflow", "buffer"}
IN_REFERENCE = {"format", "max_bytes", "read_timeout", "connect_timeout"}
"""Options that mean here what they mean everywhere."""


def example(name: str, address: str) -> str:
    [text] = [text for text in blocks(PAGE, "yaml") if f"name: {name}\n" in text]
    return text.replace("localhost:8000", address).replace("localhost:8001", address)


async def run(text: str, folder: Path) -> None:
    (folder / "graph.yaml").write_text(text)
    with anyio.fail_after(PLENTY):
        async with Graph.from_yaml(folder / "graph.yaml").open() as opened:
            await opened.wait()


def answer(request: Request) -> None:
    if request.path == "/weather.json":
        request.reply(b'{"temperature": 21.5}')
    elif "Last-Event-ID" in request.headers:
        request.reply(status=204)
    else:
        request.stream()
        request.send(b'data: 1\n\nevent: load\nid: 5\ndata: {"load": 3}\n\n')


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("name", "file", "value"),
    [
        ("weather", "readings.jsonl", {"temperature": 21.5}),
        ("events", "loads.jsonl", {"load": 3}),
    ],
)
async def test_the_examples_of_http(tmp_path: Path, name: str, file: str, value: Any) -> None:
    with serving(answer) as server:
        text = example(name, f"127.0.0.1:{server.server_address[1]}")
        await run(text.replace("end_after: 5", "end_after: 0.5"), tmp_path)
    assert [json.loads(line) for line in (tmp_path / file).read_text().splitlines()] == [value]


@pytest.mark.asyncio
async def test_the_example_of_websocket(tmp_path: Path) -> None:
    copied: list[Any] = []

    async def handle(connection: Any) -> None:
        if connection.request.path == "/feed":
            assert await connection.recv() == '{"subscribe": "trades"}'
            await connection.send('{"price": 5}')
            await asyncio.Event().wait()
        copied.extend([message async for message in connection])

    async with serving_websocket(handle) as served:
        text = example("trades", served.url.split("/")[2])
        await run(text.replace("end_after: 5", "end_after: 1"), tmp_path)
    assert copied == ['{"price":5}']


@pytest.mark.asyncio
async def test_the_example_of_redis(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        text = example("meters", "").replace("localhost:6379", f"127.0.0.1:{server.port}")
        redis: Any
        async with Redis(port=server.port) as redis:
            await redis.xadd("readings", {"value": '{"load": 5}'})
            await run(text, tmp_path)
            [(_, copied)] = await redis.xrange("copy")
            assert copied[b"value"] == b'{"load":5}'
            assert (await redis.xpending("readings", "machine"))["pending"] == 0


@pytest.mark.parametrize(
    "declared", [HttpSource, WebSocketSource, WebSocketSink, RedisSource, RedisSink]
)
def test_the_page_names_every_option(declared: Any) -> None:
    text = (Path(__file__).parent.parent / PAGE).read_text(encoding="utf-8")
    options = declared.model_fields.keys() - SHARED - IN_REFERENCE
    assert {option for option in options if option not in text} == set()

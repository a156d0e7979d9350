"""Which options of a source may change between a checkpoint and the run that goes on from it."""

from __future__ import annotations

from typing import Any

import pytest

from streamflow import Graph
from streamflow.checkpoints.identity import identify
from streamflow.nodes import Source
from streamflow_connectors.files import FileSink
from streamflow_connectors.http import HttpSource
from streamflow_connectors.kafka import KafkaSource
from streamflow_connectors.redis import RedisSource
from streamflow_connectors.websocket import WebSocketSource

KAFKA = KafkaSource(bootstrap_servers="a:1", pattern="t.*")
POLL = HttpSource(url="http://a", mode="poll")
SOCKET = WebSocketSource(url="ws://a")
REDIS = RedisSource(url="redis://a", streams=("s",), group="g")


def hash_of(source: Source) -> str:
    sink = FileSink(inputs=("in",), path="out.jsonl")
    return identify(Graph(name="g", sources={"in": source}, sinks={"out": sink})).hash


@pytest.mark.parametrize(
    ("source", "options"),
    [
        (KAFKA, {"bootstrap_servers": "b:2", "refresh": 1.0, "ca_file": "c", "retry_for": 1.0}),
        (POLL, {"every": 1.0, "end_after": 1.0, "headers": {"a": "b"}, "read_timeout": 1.0}),
        (POLL, {"username": "me", "connect_timeout": 1.0, "retry_for": 1.0, "ca_file": "c"}),
        (SOCKET, {"end_after": 1.0, "headers": {"a": "b"}}),
        (REDIS, {"consumer": "a", "stop_at_end": True, "username": "me", "retry_for": 1.0}),
    ],
)
def test_what_says_nothing_about_the_records_may_change(
    source: Source, options: dict[str, Any]
) -> None:
    assert hash_of(source.model_copy(update=options)) == hash_of(source)


@pytest.mark.parametrize(
    ("source", "options"),
    [
        (KAFKA, {"pattern": "u.*"}),
        (KAFKA, {"start": "latest"}),
        (KAFKA, {"formats": {"t": "raw"}}),
        (POLL, {"url": "http://b"}),
        (POLL, {"body": "lines"}),
        (SOCKET, {"first": ("a",)}),
        (REDIS, {"streams": ("t",)}),
        (REDIS, {"payload": "data"}),
        (REDIS, {"group": "h"}),
    ],
)
def test_what_says_which_records_come_may_not(source: Source, options: dict[str, Any]) -> None:
    changed = type(source)(**{**source.model_dump(exclude_unset=True), **options})
    assert hash_of(changed) != hash_of(source)

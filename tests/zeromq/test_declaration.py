from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zmq

from streamflow import Graph
from streamflow.checkpoints.identity import identify
from streamflow.contracts import Context
from streamflow.errors import ConnectorError, GraphError
from streamflow_connectors.zeromq import ZeroMqSink, ZeroMqSource
from streamflow_connectors.zeromq.options import Endpoints
from tests.runtime.graphs import graph_of, numbers, sink

PUBLIC, SECRET = (key.decode() for key in zmq.curve_keypair())
OTHER = zmq.curve_keypair()[0].decode()
KEYS = {"curve_public_key": PUBLIC, "curve_secret_key": SECRET}
CONNECT = ("tcp://a:5555",)


def source(**options: Any) -> ZeroMqSource:
    return ZeroMqSource(**{"socket": "pull", "connect": CONNECT, **options})


def target(**options: Any) -> ZeroMqSink:
    return ZeroMqSink(**{"socket": "push", "connect": CONNECT, **options})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"socket": "push"}, "socket: expected one of pull, sub"),
        ({"socket": None}, "socket: expected one of pull, sub"),
        (
            {"bind": ("tcp://*:1",)},
            "connect: expected endpoints in either bind or connect",
        ),
        ({"connect": ()}, "connect: expected endpoints in either bind or connect, found none"),
        ({"connect": CONNECT * 2}, "connect: expected each endpoint once"),
        ({"connect": "tcp://a:1"}, "connect: expected a list"),
        ({"connect": ("tcp://*:1",)}, r"connect.0: expected the host of a peer, found tcp://\*:1"),
        ({"connect": ("tcp://a",)}, "connect.0: expected tcp:// with a host and a port, or ipc://"),
        ({"connect": ("tcp://a:0",)}, "found tcp://a:0; write tcp://host:5555"),
        ({"connect": ("tcp://a:65536",)}, "found tcp://a:65536"),
        ({"connect": ("inproc://a",)}, "found inproc://a"),
        ({"connect": ("ipc://@a",)}, "found ipc://@a"),
        ({"connect": (), "bind": ("tcp://:1",)}, r"found tcp://:1; write tcp://\*:5555"),
        ({"connect": (), "bind": ("tcp://*:*",)}, r"bind.0: expected tcp://"),
        ({"connect": (), "bind": ("ipc://",)}, "bind.0: expected tcp://"),
        ({"topics": ("t",)}, "topics: expected topics with socket: sub, found pull"),
        ({"high_water_mark": 0}, "high_water_mark: expected a number of at least 1"),
        ({"high_water_mark": 2**31}, "high_water_mark: expected a number less than"),
        ({"max_bytes": "much"}, "max_bytes: expected a number of bytes"),
        ({"end_after": 0}, "end_after: expected a number greater than 0"),
        (
            {"curve_public_key": PUBLIC},
            "together, found only curve_public_key",
        ),
        ({"curve_secret_key": SECRET}, "together, found only curve_secret_key"),
        ({"curve_server_key": PUBLIC}, "together, found only curve_server_key"),
        ({**KEYS, "curve_server_key": "short"}, "curve_server_key: expected a key of 40 char"),
        ({**KEYS, "curve_public_key": "'" * 40}, "curve_public_key: expected a key of 40 char"),
        ({**KEYS, "curve_secret_key": SECRET[1:]}, "curve_secret_key: expected a key of 40 char"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(GraphError, match=rf"^ZeroMqSource\.{expected}|{expected}") as caught:
        source(**options)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"socket": "sub"}, "socket: expected one of push, pub"),
        ({"topic": "t"}, "topic: expected a topic with socket: pub, found push"),
        ({"linger": -1}, "linger: expected a number of at least 0"),
        ({"linger": float("inf")}, "linger: expected"),
        ({"connect": ()}, "either bind or connect"),
    ],
)
def test_options_of_a_sink_that_do_not_fit_are_refused(
    options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(GraphError, match=expected):
        target(**options)


def test_no_secret_is_shown() -> None:
    declared = source(**KEYS)
    assert SECRET not in repr(declared) + str(declared.model_dump()) + declared.model_dump_json()
    for options in (
        {**KEYS, "no_such_option": 1},
        {"curve_secret_key": SECRET},
        {**KEYS, "curve_secret_key": f"{SECRET} "},
    ):
        with pytest.raises(GraphError) as caught:
            source(**options)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize("declared", [source(**KEYS), target(**KEYS)], ids=["source", "sink"])
def test_a_pair_of_keys_is_no_problem(declared: Endpoints) -> None:
    assert list(declared.deep_problems(Path())) == []
    assert list(source().deep_problems(Path())) == []


@pytest.mark.parametrize("secret", [SECRET, "#" * 40], ids=["of another", "no number"])
def test_keys_that_are_no_pair_are_found(secret: str) -> None:
    declared = source(curve_public_key=OTHER, curve_secret_key=secret)
    [problem] = declared.deep_problems(Path())
    assert problem.location == ("curve_public_key",)
    assert str(problem).startswith("curve_public_key: expected the public key of curve_secret_key")


@pytest.mark.anyio
async def test_keys_that_are_none_are_told(folder: Path) -> None:
    declared = source(curve_public_key=OTHER, curve_secret_key="#" * 40)
    with pytest.raises(ConnectorError, match="in: expected options that ZeroMQ takes"):
        async with declared.open(Context("in", folder)):
            pass


@pytest.mark.anyio
@pytest.mark.parametrize("endpoint", ["ipc://taken", "ipc://no/such/folder", "tcp://nowhere:5555"])
async def test_an_endpoint_that_cannot_be_used_is_told(folder: Path, endpoint: str) -> None:
    (folder / "taken").mkdir()
    for declared in (source, target):
        node = declared(connect=(), bind=(endpoint,))
        with pytest.raises(ConnectorError, match=r"^node: expected to listen at .*; check the end"):
            async with node.open(Context("node", folder)):
                pass


@pytest.mark.anyio
async def test_a_path_that_is_too_long_is_told(folder: Path) -> None:
    with pytest.raises(ConnectorError, match="in: expected to connect to ipc://"):
        async with source(connect=(f"ipc://{'x' * 200}",)).open(Context("in", folder)):
            pass


def test_both_ends_promise_no_more_than_at_most_once() -> None:
    reading = graph_of(source(), sink())
    assert [promise.delivered for promise in reading.promises()] == ["at most once"]
    writing = graph_of(numbers(1), target(inputs=("in",)))
    assert [promise.delivered for promise in writing.promises()] == ["at most once"]
    assert "may be lost at any time" in str(writing.promises()[0])


def test_what_is_incidental_leaves_the_graph_the_same() -> None:
    def identity(**options: Any) -> object:
        return identify(graph_of(source(**options), sink())).hash

    plain = identity()
    same: list[dict[str, Any]] = [
        {"connect": ("tcp://b:1", "ipc://c")},
        {"connect": (), "bind": ("tcp://*:1",)},
        {"high_water_mark": 1},
        {**KEYS, "curve_server_key": OTHER},
        {"end_after": 1.0},
    ]
    other: list[dict[str, Any]] = [{"socket": "sub"}, {"format": "raw"}, {"max_bytes": 5}]
    assert [identity(**options) == plain for options in same] == [True] * len(same)
    assert [identity(**options) == plain for options in other] == [False] * len(other)


def test_csv_has_only_single_values() -> None:
    assert source(format={"csv": {"fields": ["x"]}}).only_scalars
    assert not source().only_scalars


def test_dead_letters_are_decoded_as_the_stream_is() -> None:
    codec = source(format="msgpack").decoder(Path(), {"index": 3})
    assert codec.decode([b"\x05"]).values == [5]


def test_declarations_are_read_from_yaml_and_written_back(tmp_path: Path) -> None:
    path = tmp_path / "graph.yaml"
    path.write_text(
        f"""\
name: g
sources:
  in: {{type: zeromq, socket: sub, topics: [a, b], connect: ["tcp://a:1", "ipc://b"], end_after: 5}}
sinks:
  out:
    type: zeromq
    inputs: [in]
    socket: pub
    topic: t
    bind: ["tcp://*:5555"]
    max_bytes: 1MiB
    linger: 0.5
    curve_public_key: '{PUBLIC}'
    curve_secret_key: '{SECRET}'
"""
    )
    graph = Graph.from_yaml(path)
    assert graph.sinks["out"] == ZeroMqSink(
        inputs=("in",),
        socket="pub",
        topic="t",
        bind=("tcp://*:5555",),
        max_bytes=2**20,
        linger=0.5,
        **KEYS,
    )
    assert graph.sources["in"] == ZeroMqSource(
        socket="sub", topics=("a", "b"), connect=("tcp://a:1", "ipc://b"), end_after=5.0
    )


def test_declaring_imports_no_driver() -> None:
    code = (
        "import sys; from streamflow_connectors import zeromq; "
        "zeromq.ZeroMqSource(socket='pull', bind=('tcp://*:1',)); "
        "sys.exit(bool({'zmq', 'torch'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

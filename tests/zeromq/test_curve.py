from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from streamflow.testing.connectors import make_batch
from tests.zeromq.peers import FEED, peer, reading, receive_values, writing

pytestmark = pytest.mark.anyio

SERVER, CLIENT, STRANGER = (
    dict(
        zip(
            ("curve_public_key", "curve_secret_key"),
            (key.decode() for key in zmq.curve_keypair()),
            strict=True,
        )
    )
    for _ in range(3)
)
TO_SERVER = {"curve_server_key": SERVER["curve_public_key"]}


@pytest.mark.parametrize("is_binding", [True, False])
async def test_records_travel_encrypted(folder: Path, is_binding: bool) -> None:
    here, there = ("bind", "connect") if is_binding else ("connect", "bind")
    source: dict[str, Any] = {here: (FEED,), **SERVER}
    sink: dict[str, Any] = {there: (FEED,), **CLIENT, **TO_SERVER}
    async with reading(folder, **source) as reader, writing(folder, **sink) as writer:
        await writer.write(make_batch([1, 2, 3]))
        assert await receive_values(reader, 3) == [1, 2, 3]


def options(server: str | None) -> dict[int, Any]:
    if server is None:
        return {}
    return {
        zmq.CURVE_SERVERKEY: server.encode(),
        zmq.CURVE_PUBLICKEY: CLIENT["curve_public_key"].encode(),
        zmq.CURVE_SECRETKEY: CLIENT["curve_secret_key"].encode(),
    }


FAILED = {
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
    zmq.EVENT_DISCONNECTED,
}


@pytest.mark.parametrize(
    "server", [None, STRANGER["curve_public_key"]], ids=["without keys", "of another server"]
)
async def test_strangers_are_not_heard(folder: Path, server: str | None) -> None:
    with (
        peer(zmq.PUSH, options(server)) as stranger,
        peer(zmq.PUSH, options(SERVER["curve_public_key"])) as friend,
        stranger.get_monitor_socket() as monitor,
    ):
        monitor.rcvtimeo = stranger.rcvtimeo
        stranger.connect(f"ipc://{folder}/feed")
        stranger.send(b'"from a stranger"')
        async with reading(folder, bind=(FEED,), **SERVER) as reader:
            while recv_monitor_message(monitor)["event"] not in FAILED:
                pass
            friend.connect(f"ipc://{folder}/feed")
            friend.send(b"1")
            assert await receive_values(reader, 1) == [1]
        stranger.disable_monitor()

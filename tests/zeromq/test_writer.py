from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import msgpack  # type: ignore[import-untyped]
import numpy as np
import pytest
import zmq
from anyio import to_thread

import streamflow_connectors.zeromq.writer as zeromq_writer
from streamflow.records import Record
from streamflow.testing.connectors import make_batch
from streamflow_connectors.zeromq.reader import ZeroMqReader
from streamflow_connectors.zeromq.sockets import BURST
from tests.zeromq.peers import FEED, peer, reading, receive_records, writing

pytestmark = pytest.mark.anyio

KEYS: list[Any] = ["text", b"bytes\xff", 3, 2.5, True, None, ("a", 1), np.int64(7), "", b""]
ARRIVED: list[Any] = ["text", b"bytes\xff", 3, 2.5, True, None, "('a', 1)", "7", "", b""]


async def test_a_message_is_a_header_and_the_value(folder: Path) -> None:
    with peer(zmq.PULL) as receiver:
        receiver.bind(f"ipc://{folder}/feed")
        async with writing(folder, connect=(FEED,)) as writer:
            record = Record({"x": 1}, "k", 12, (("h", b"v"),))
            assert await writer.write(make_batch([record, Record({"x": 2})])) is None
            messages = [receiver.recv_multipart() for _ in range(2)]
    first, second = ([msgpack.unpackb(header), value] for header, value in messages)
    sender = first[0][1]
    assert len(sender) == 8
    assert first == [[1, sender, 0, "k", 12, [["h", b"v"]]], b'{"x":1}']
    assert second == [[1, sender, 1, None, None, []], b'{"x":2}']


async def test_each_start_of_a_sink_is_another_sender(folder: Path) -> None:
    senders = []
    with peer(zmq.PULL) as receiver:
        receiver.bind(f"ipc://{folder}/feed")
        for _ in range(2):
            async with writing(folder, connect=(FEED,)) as writer:
                await writer.write(make_batch([1]))
                _, sender, number, *_ = msgpack.unpackb(receiver.recv_multipart()[0])
                senders.append(sender)
                assert number == 0
    assert len(set(senders)) == 2


async def test_records_may_go_without_numbers(folder: Path) -> None:
    with peer(zmq.PULL) as receiver:
        receiver.bind(f"ipc://{folder}/feed")
        async with writing(folder, connect=(FEED,), numbered=False) as writer:
            await writer.write(make_batch([Record(1, "k")]))
            header, _ = receiver.recv_multipart()
    assert msgpack.unpackb(header) == [1, None, None, "k", None, []]


async def test_all_that_a_record_has_comes_through(folder: Path) -> None:
    records = [
        Record({"n": number}, key, number, (("h", b"\xff"), ("", b"")))
        for number, key in enumerate(KEYS)
    ]
    async with reading(folder, bind=(FEED,)) as reader, writing(folder, connect=(FEED,)) as writer:
        await writer.write(make_batch(records))
        got = await receive_records(reader, len(records))
        assert reader.report() == {"records lost": 0, "records repeated or late": 0}
    assert [record.value for record in got] == [record.value for record in records]
    assert [(type(record.key), record.key) for record in got] == [(type(k), k) for k in ARRIVED]
    assert [record.timestamp_ms for record in got] == [*range(len(records))]
    assert {record.headers for record in got} == {(("h", b"\xff"), ("", b""))}


async def test_what_cannot_be_sent_is_rejected_and_takes_no_number(folder: Path) -> None:
    bad = [
        (Record("x" * 9), "expected at most 10 bytes, found 11; see max_bytes"),
        (Record(float("nan")), "expected a value that JSON holds"),
        (Record(1, "\ud800"), "expected a key, time and headers that msgpack holds"),
        (Record(1, 2**64), "expected a key, time and headers that msgpack holds"),
    ]
    records = [record for each, _ in bad for record in (Record(1), each)]
    with peer(zmq.PULL) as receiver:
        receiver.bind(f"ipc://{folder}/feed")
        async with writing(folder, connect=(FEED,), max_bytes=10) as writer:
            rejected = await writer.write(make_batch(records))
            numbers = [msgpack.unpackb(receiver.recv_multipart()[0])[2] for _ in bad]
            assert repr(writer) == "<ZeroMqWriter out: 4 sent>"
    assert numbers == [0, 1, 2, 3]
    assert rejected is not None
    assert list(rejected.indices) == [1, 3, 5, 7]
    for cause, (_, expected) in zip(rejected.causes, bad, strict=True):
        assert cause.startswith(expected)


async def test_what_is_published_has_its_topic_first(folder: Path) -> None:
    with peer(zmq.SUB) as receiver:
        receiver.subscribe(b"room")
        receiver.bind(f"ipc://{folder}/feed")
        async with writing(folder, socket="pub", topic="room.1", connect=(FEED,)) as writer:
            while not receiver.poll(0):  # until the subscription has arrived
                await writer.write(make_batch([1]))
            topic, header, value = receiver.recv_multipart()
    assert (topic, len(msgpack.unpackb(header)), value) == (b"room.1", 6, b"1")


async def test_what_a_subscriber_has_no_room_for_is_counted(folder: Path) -> None:
    count = 3000
    large = "x" * 2**13
    options: dict[str, Any] = {"format": "raw", "high_water_mark": 1}
    async with (
        reading(folder, socket="sub", bind=(FEED,), **options) as reader,
        writing(folder, socket="pub", connect=(FEED,), linger=0.0, **options) as writer,
    ):
        while not reader._socket.poll(0):
            await writer.write(make_batch(["first"]))
        await writer.write(make_batch([large] * count))  # far more than fits on the way
        received = 0
        while not reader.report()["records lost"]:
            received += len(await receive_records(reader, 1))
            await writer.write(make_batch(["last"]))
        sent = writer._num_sent
        assert 0 < reader.report()["records lost"] < sent
        assert reader.report()["records lost"] + received <= sent


async def test_others_have_a_turn_while_much_is_published(folder: Path) -> None:
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with (
        writing(folder, socket="pub", bind=(FEED,)) as writer,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(take_turns)
        await writer.write(make_batch([1] * 10 * BURST))
        assert turns >= 9  # two tasks that are ready may go in either order
        tasks.cancel_scope.cancel()


async def test_waiting_for_a_receiver_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zeromq_writer, "LONG", 0.0)
    async with writing(folder, bind=(FEED,)) as writer, anyio.create_task_group() as tasks:
        assert writer.retrying() is None
        tasks.start_soon(writer.write, make_batch([1]))
        while (told := writer.retrying()) is None:
            await anyio.lowlevel.checkpoint()
        assert told == "waiting for 0 s: no receiver has room"
        with peer(zmq.PULL) as receiver:
            receiver.connect(f"ipc://{folder}/feed")
            while writer.retrying() is not None:
                await anyio.lowlevel.checkpoint()
            assert receiver.recv_multipart()[1] == b"1"


LARGE = ["x" * 2**14] * 1000
"""Far more than fits between two sockets, and no more than may wait."""


async def test_closing_waits_for_what_is_on_its_way(folder: Path) -> None:
    with peer(zmq.PULL, {zmq.RCVHWM: 1}) as receiver:
        # Over ipc a receiver that is full loses what the kernel holds when its peer closes.
        port = receiver.bind_to_random_port("tcp://127.0.0.1")
        numbers: list[int] = []

        def take() -> None:
            while len(numbers) < len(LARGE):
                numbers.append(msgpack.unpackb(receiver.recv_multipart()[0])[2])

        async with (
            anyio.create_task_group() as tasks,
            writing(folder, connect=(f"tcp://127.0.0.1:{port}",)) as writer,
        ):
            await writer.write(make_batch(LARGE))
            tasks.start_soon(to_thread.run_sync, take)
    assert numbers == list(range(len(LARGE)))


async def test_closing_waits_no_longer_than_linger(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with peer(zmq.PULL, {zmq.RCVHWM: 1}) as receiver, caplog.at_level(logging.WARNING):
        receiver.bind(f"ipc://{folder}/feed")
        async with writing(folder, connect=(FEED,), linger=0.05) as writer:
            await writer.write(make_batch(LARGE))
    [told] = caplog.records
    assert told.getMessage().startswith("out: peers did not take all records within 0.05 s")


async def test_no_more_waits_than_the_high_water_mark(folder: Path) -> None:
    async with writing(folder, bind=(FEED,), high_water_mark=7) as writer:
        assert writer._socket.get(zmq.SNDHWM) == 7


async def test_several_endpoints_share_out_what_is_pushed(folder: Path) -> None:
    endpoints = tuple(f"ipc://{folder}/{name}" for name in "ab")
    received: list[list[int]] = [[], []]

    async def gather(reader: ZeroMqReader, numbers: list[int]) -> None:
        while True:
            numbers += (await reader.receive()).batch.rows()

    async with (
        reading(folder, bind=endpoints[:1]) as first,
        reading(folder, bind=endpoints[1:]) as second,
        writing(folder, connect=endpoints, numbered=False) as writer,
        anyio.create_task_group() as tasks,
    ):
        for reader, numbers in zip((first, second), received, strict=True):
            tasks.start_soon(gather, reader, numbers)
        sent = 0
        while not all(received):  # a peer gets some once its connection has come about
            await writer.write(make_batch([sent]))
            sent += 1
        while sum(map(len, received)) < sent:
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert sorted(received[0] + received[1]) == list(range(sent))
    assert all(numbers == sorted(numbers) for numbers in received)

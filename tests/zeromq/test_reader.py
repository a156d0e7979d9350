from __future__ import annotations

import logging
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
import zmq

import streamflow_connectors.zeromq.reader as zeromq_reader
from streamflow_connectors.zeromq.sockets import BURST
from tests.zeromq.peers import FEED, header, peer, reading, receive, receive_records, receive_values

pytestmark = pytest.mark.anyio


async def test_a_message_of_one_frame_is_a_value(folder: Path) -> None:
    with peer(zmq.PUSH) as sender:
        sender.connect(f"ipc://{folder}/feed")
        async with reading(folder, bind=(FEED,)) as reader:
            sender.send(b'{"x": 1}')
            sender.send(b"2")
            first, second = await receive_records(reader, 2)
            assert (first.value, first.key, first.position) == ({"x": 1}, None, {"index": 0})
            assert (second.value, second.position) == (2, {"index": 1})


async def test_a_header_brings_key_time_and_headers(folder: Path) -> None:
    with peer(zmq.PUSH) as sender:
        sender.connect(f"ipc://{folder}/feed")
        async with reading(folder, bind=(FEED,)) as reader:
            sender.send_multipart([header(b"a", 0, "k", 12, [["h", b"v"], ["h", b""]]), b"1"])
            sender.send_multipart([header(None, None), b"2"])
            first, second = await receive_records(reader, 2)
            assert (first.key, first.timestamp_ms) == ("k", 12)
            assert first.headers == (("h", b"v"), ("h", b""))
            assert (second.key, second.timestamp_ms, second.headers) == (None, None, ())


async def test_several_endpoints_bring_one_stream(folder: Path) -> None:
    with peer(zmq.PUSH) as one, peer(zmq.PUSH) as other:
        one.bind(f"ipc://{folder}/one")
        other.bind(f"ipc://{folder}/other")
        async with reading(folder, connect=("ipc://one", "ipc://other")) as reader:
            for _ in range(3):
                one.send(b"1")
                other.send(b"2")
            assert sorted(await receive_values(reader, 6)) == [1, 1, 1, 2, 2, 2]


async def test_what_cannot_be_used_is_rejected_with_its_cause(folder: Path) -> None:
    fine = [header(b"a", 0), b"1"]
    bad = {
        "expected 2 frames or fewer, found 3": [b"x", b"y", b"2"],
        "expected the header of a zeromq sink": [b"\xc1", b"3"],
        "expected the header of a zeromq sink before the value, found something else": [
            b"\x05",
            b"4",
        ],
        "expected at most 20 bytes, found 21": [b'"' + b"x" * 19 + b'"'],
        "expected JSON": [b"no json"],
    }
    with peer(zmq.PUSH) as sender:
        sender.connect(f"ipc://{folder}/feed")
        async with reading(folder, bind=(FEED,), max_bytes=20) as reader:
            for _ in range(50):
                for frames in bad.values():
                    sender.send_multipart(fine)
                    sender.send_multipart(frames)
            fetches = await receive(reader, 100 * len(bad))
    assert [value for fetch in fetches for value in fetch.batch.rows()] == [1] * 50 * len(bad)
    rejected = [fetch.rejected for fetch in fetches if fetch.rejected is not None]
    letters = [
        (offset, cause, original, headers)
        for each in rejected
        for offset, cause, original, headers in zip(
            each.batch.offsets,
            each.causes,
            each.batch.originals or (),
            each.batch.headers or [()] * len(each.batch),
            strict=True,
        )
    ]
    assert [offset for offset, *_ in letters] == list(range(1, 100 * len(bad), 2))
    for (_, cause, original, headers), (expected, frames) in zip(
        letters, [*bad.items()] * 50, strict=True
    ):
        assert cause.startswith(expected)
        assert original == frames[-1]
        assert headers == tuple(("zeromq.frame", frame) for frame in frames[:-1])


async def test_a_frame_that_is_far_too_large_is_not_taken(folder: Path) -> None:
    with peer(zmq.PUSH) as sender:
        sender.connect(f"ipc://{folder}/feed")
        async with reading(folder, bind=(FEED,), max_bytes=10) as reader:
            sender.send(b"1" * 41)
            values: list[int] = []
            async with anyio.create_task_group() as tasks:

                async def keep_sending() -> None:
                    while True:  # what is on its way with it goes with it
                        sender.send(b"2")
                        await anyio.sleep(0.01)

                tasks.start_soon(keep_sending)
                values += await receive_values(reader, 1)
                tasks.cancel_scope.cancel()
            assert set(values) == {2}
            assert reader.report()["records lost"] == 0


async def test_loss_is_counted_for_each_sender_and_told_once(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = [(b"a", 5), (b"b", 0), (b"a", 6), (b"a", 9), (b"b", 1), (b"a", 8), (b"a", 11)]
    with peer(zmq.PUSH) as sender, caplog.at_level(logging.WARNING):
        sender.connect(f"ipc://{folder}/feed")
        async with reading(folder, bind=(FEED,)) as reader:
            assert reader.report() == {"records lost": 0, "records repeated or late": 0}
            for name, number in numbers:
                sender.send_multipart([header(name, number), b"1"])
            sender.send_multipart([header(b"b", 9), b"1"])
            await receive(reader, 8)
            assert reader.report() == {"records lost": 3 + 7, "records repeated or late": 1}
            assert repr(reader) == "<ZeroMqReader in: 8 received, 10 lost>"
    told = [record.getMessage() for record in caplog.records]
    assert [text[:72] for text in told] == [
        "in: records of the sender 61 are lost: expected number 7, found 9; raise",
        "in: records of the sender 62 are lost: expected number 2, found 9; raise",
    ]


async def test_a_subscriber_gets_its_topics(folder: Path) -> None:
    with peer(zmq.XPUB) as sender:
        sender.bind(f"ipc://{folder}/feed")
        async with reading(
            folder, socket="sub", topics=("room.1", "hall"), connect=(FEED,)
        ) as reader:
            assert {sender.recv(), sender.recv()} == {b"\x01room.1", b"\x01hall"}
            sender.send_multipart([b"room.2", b"1"])
            sender.send_multipart([b"room.1/heat", b"2"])
            sender.send_multipart([b"hall", header(b"a", 0, "k", None, []), b"3"])
            sender.send_multipart([b"hall\xff", b"4"])
            records = await receive_records(reader, 3)
    assert [(record.key, record.value) for record in records] == [
        ("room.1/heat", 2),
        ("k", 3),
        (b"hall\xff", 4),
    ]


async def test_a_subscriber_without_topics_gets_everything(folder: Path) -> None:
    with peer(zmq.XPUB) as sender:
        sender.bind(f"ipc://{folder}/feed")
        async with reading(folder, socket="sub", connect=(FEED,)) as reader:
            assert sender.recv() == b"\x01"
            sender.send(b"1")
            sender.send_multipart([b"t", b"\x93", b"x", b"2"])
            fetches = await receive(reader, 2)
    assert [value for fetch in fetches for value in fetch.batch.rows()] == [1]
    [rejected] = [fetch.rejected for fetch in fetches if fetch.rejected]
    assert rejected.causes == ["expected 3 frames or fewer, found 4"]


async def test_silence_ends_the_stream(folder: Path) -> None:
    async with reading(folder, bind=(FEED,), end_after=0.01) as reader:
        for _ in range(2):
            with pytest.raises(anyio.EndOfStream):
                await reader.receive()


async def test_what_came_during_silence_is_read_first(folder: Path) -> None:
    with peer(zmq.PUSH) as sender:
        sender.connect(f"ipc://{folder}/feed")
        async with reading(folder, bind=(FEED,), end_after=0.01) as reader:
            reader._silent_since = anyio.current_time() - 1.0
            sender.send(b"1")
            while not reader._socket.poll(0):
                await anyio.lowlevel.checkpoint()
            assert await receive_values(reader, 1) == [1]
            with pytest.raises(anyio.EndOfStream):
                await reader.receive()


async def test_others_have_a_turn_between_bounded_batches(folder: Path) -> None:
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    with peer(zmq.PUSH, {zmq.SNDHWM: 0}) as sender:
        sender.connect(f"ipc://{folder}/feed")
        for number in range(5000):
            sender.send(b"%d" % number)
        async with reading(folder, bind=(FEED,)) as reader, anyio.create_task_group() as tasks:
            tasks.start_soon(take_turns)
            values: list[int] = []
            while len(values) < 5000:
                batch = (await reader.receive()).batch
                assert len(batch) <= BURST
                values += batch.rows()
            assert turns >= 5000 // BURST - 1  # two tasks that are ready may go in either order
            tasks.cancel_scope.cancel()
    assert values == list(range(5000))


async def test_large_messages_make_small_batches(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zeromq_reader, "MOST_BYTES", 5)
    with peer(zmq.PUSH) as sender:
        sender.connect(f"ipc://{folder}/feed")
        async with reading(folder, bind=(FEED,), format="raw") as reader:
            for _ in range(500):
                sender.send(b"1234")
            fetches = await receive(reader, 500)
    assert max(fetch.num_records for fetch in fetches) <= 2


async def test_a_receive_that_is_cancelled_takes_nothing(folder: Path) -> None:
    with peer(zmq.PUSH) as sender:
        sender.connect(f"ipc://{folder}/feed")
        async with reading(folder, bind=(FEED,)) as reader:
            sender.send(b"1")
            while not reader._socket.poll(0):
                await anyio.lowlevel.checkpoint()
            with anyio.CancelScope() as scope:
                scope.cancel()
                await reader.receive()
            assert scope.cancelled_caught
            assert await receive_values(reader, 1) == [1]


async def test_what_comes_as_the_silence_ends_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with peer(zmq.PUSH) as sender:
        sender.connect(f"ipc://{folder}/feed")

        async def notice_nothing(socket: zmq.Socket[bytes], event: int) -> None:
            while not socket.poll(0):
                await anyio.lowlevel.cancel_shielded_checkpoint()
            await anyio.sleep_forever()

        monkeypatch.setattr(zeromq_reader, "wait_for", notice_nothing)
        async with reading(folder, bind=(FEED,), end_after=0.01) as reader:
            sender.send(b"1")
            assert await receive_values(reader, 1) == [1]


@pytest.mark.parametrize("socket", ["pull", "sub"])
async def test_no_more_waits_than_the_high_water_mark(folder: Path, socket: str) -> None:
    async with reading(folder, socket=socket, bind=(FEED,), high_water_mark=7) as reader:
        assert reader._socket.get(zmq.RCVHWM) == 7

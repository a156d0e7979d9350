from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamflow.records import Batch, Partition, to_columns
from streamflow.runtime.acks import Ledger
from streamflow.runtime.channels import Edge, Inbox
from streamflow.runtime.parcels import Parcel, join
from streamflow.runtime.round_robin import RoundRobinInbox

PARTITION = Partition("source")

STREAMS = st.lists(st.integers(0, 12), min_size=1, max_size=4).flatmap(
    lambda counts: st.tuples(
        *(st.sets(st.integers(1, max(count - 1, 1))).map(_cuts(count)) for count in counts)
    )
)


def _cuts(count: int) -> Any:
    return lambda cuts: [
        range(start, stop) for start, stop in pairwise([0, *sorted(cuts), count]) if start < stop
    ]


def parcel(values: Sequence[Any], size_bytes: int = 7, ledger: Ledger | None = None) -> Parcel:
    offsets = range(len(values))
    batch = Batch(
        to_columns(list(values)), [PARTITION] * len(values), offsets, size_bytes=size_bytes
    )
    return Parcel(batch, (ledger.track({PARTITION: 1}),) if ledger else ())


def in_turn(streams: Sequence[Sequence[Any]]) -> list[Any]:
    """Return one record of each stream in turn, streams that have ended left out."""
    queues = [list(stream) for stream in streams]
    result = []
    while any(queues):
        result += [queue.pop(0) for queue in queues if queue]
    return result


async def receive_all(inbox: Inbox, max_records: int = 100) -> list[Any]:
    rows: list[Any] = []
    while (received := await inbox.receive(max_records)) is not None:
        rows += received.batch.rows()
        received.finish()
    return rows


async def send_all(edge: Edge, parcels: Sequence[Parcel]) -> None:
    for item in parcels:
        await edge.send(item)
    edge.close()


@pytest.mark.anyio
@pytest.mark.parametrize(
    "filling",
    [parcel(range(1024)), parcel(range(3), size_bytes=16 * 2**20)],
    ids=["records", "bytes"],
)
@pytest.mark.parametrize("kind", [Inbox, RoundRobinInbox])
async def test_a_full_edge_makes_its_sender_wait(kind: type[Inbox], filling: Parcel) -> None:
    inbox = kind()
    edge, other = inbox.edge(), inbox.edge()
    await edge.send(filling)
    await other.send(parcel([1]))  # an edge of its own
    other.close()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(edge.send, parcel(["late"]))
        await anyio.wait_all_tasks_blocked()
        assert inbox.records == len(filling.batch) + 1
        await inbox.receive(len(filling.batch) + 1)
    assert inbox.records == 1


@pytest.mark.anyio
async def test_parcels_come_in_order_of_arrival_and_no_more_than_asked_for() -> None:
    inbox = Inbox()
    first, second = inbox.edge(), inbox.edge()
    await first.send(parcel([1, 2]))
    await second.send(parcel([3]))
    await first.send(parcel([4, 5]))
    await second.send(parcel([6]))
    sizes = []
    rows = []
    first.close()
    second.close()
    while (received := await inbox.receive(3)) is not None:
        sizes.append(len(received.batch))
        rows += received.batch.rows()
    assert rows == [1, 2, 3, 4, 5, 6]
    assert sizes == [3, 3]
    assert repr(inbox) == "<Inbox 0 records, 2/2 closed>"


@pytest.mark.anyio
async def test_no_more_records_come_than_asked_for() -> None:
    inbox = Inbox()
    edge = inbox.edge()
    await edge.send(parcel(range(3)))
    await edge.send(parcel(range(3, 13)))
    rows = []
    for count in (4, 4, 4, 1):
        received = await inbox.receive(4)
        assert received is not None
        assert len(received.batch) == count
        rows += received.batch.rows()
    assert rows == list(range(13))


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [Inbox, RoundRobinInbox])
async def test_an_inbox_ends_when_all_edges_are_closed_and_empty(kind: type[Inbox]) -> None:
    inbox = kind()
    first, second = inbox.edge(), inbox.edge()
    rows: list[Any] = []

    async def receive() -> None:
        rows.extend(await receive_all(inbox))
        rows.append("end")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(receive)
        await first.send(parcel(["a"]))
        first.close()
        first.close()
        await anyio.wait_all_tasks_blocked()
        assert rows == []  # the second edge is open
        second.close()
    assert rows == ["a", "end"]
    assert await inbox.receive(1) is None


@given(STREAMS, st.data())
def test_round_robin_takes_turns_whatever_the_cuts_and_the_arrival(
    streams: tuple[list[range], ...], data: st.DataObject
) -> None:
    max_records = data.draw(st.integers(1, 6), label="max_records")
    ledger = Ledger()
    inbox = RoundRobinInbox()
    edges = [inbox.edge() for _ in streams]
    todo = [
        [parcel([(index, n) for n in part], 13, ledger) for part in parts]
        for index, parts in enumerate(streams)
    ]
    rows: list[Any] = []

    async def take() -> None:
        """Receive what is there without waiting; shares settle as they come."""
        while inbox.is_ready:
            received = await inbox.receive(max_records)
            assert received is not None
            assert 0 < len(received.batch) <= max_records
            rows.extend(received.batch.rows())
            received.finish()

    async def main() -> None:
        left = list(range(len(streams)))
        while left:
            index = data.draw(st.sampled_from(left))
            if todo[index]:
                await edges[index].send(todo[index].pop(0))
            else:
                edges[index].close()
                left.remove(index)
            if data.draw(st.booleans()):
                await take()
        rows.extend(await receive_all(inbox, max_records))

    anyio.run(main)
    whole = [[(i, n) for part in parts for n in part] for i, parts in enumerate(streams)]
    assert rows == in_turn(whole)
    assert [(edge.records, edge.size_bytes) for edge in edges] == [(0, 0)] * len(edges)
    assert ledger.is_idle


@pytest.mark.anyio
async def test_round_robin_is_ready_only_when_the_edge_whose_turn_it_is_has_records() -> None:
    inbox = RoundRobinInbox()
    first, second, third = (inbox.edge() for _ in range(3))
    await second.send(parcel([1, 2]))
    assert not inbox.is_ready
    first.close()
    assert inbox.is_ready
    received = await inbox.receive(5)
    assert received is not None
    assert received.batch.rows() == [1]
    assert not inbox.is_ready
    third.close()
    assert inbox.is_ready


@pytest.mark.anyio
@pytest.mark.parametrize("ends", [(0, 1), (1, 0)])
async def test_the_state_of_ended_streams_does_not_tell_which_has_ended_first(
    ends: tuple[int, int],
) -> None:
    inbox = RoundRobinInbox()
    edges = [inbox.edge(name) for name in "ab"]
    for number in ends:
        edges[number].close()
        with anyio.move_on_after(0):
            await inbox.receive(5)
    assert inbox.state()["turn"] == 0


def test_shares_are_conserved_where_parcels_split_and_join() -> None:
    ledger = Ledger()
    whole = parcel(range(4), ledger=ledger)
    left, right = whole.split([whole.batch.slice(0, 1), whole.batch.slice(1, 4)])
    again = join([right, left])
    assert again.batch.rows() == [1, 2, 3, 0]
    assert len(again.shares) == 2
    assert not ledger.is_idle
    again.finish()
    assert ledger.is_idle


def test_a_parcel_without_shares_splits() -> None:
    whole = parcel(range(2))
    assert [part.shares for part in whole.split([whole.batch] * 3)] == [(), (), ()]

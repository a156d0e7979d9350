"""What every source and sink must do, as checks that raise AssertionError with what went wrong."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import anyio

from streamflow.contracts import Context, Fetch, Reader, Resume, Writer
from streamflow.nodes.declarations import Sink, Source
from streamflow.records import Batch, Partition, Record, if_any, to_columns

LONGEST_WAIT: Final = 30.0
"""Seconds after which a connector counts as stuck."""

_A_MOMENT: Final = 0.1
_MOST_RECORDS: Final = 10_000


async def check_source(
    make: Callable[[], Source], values: Sequence[Any], *, folder: Path | None = None
) -> None:
    """Check a source that ends.

    Args:
        make: Declares, each time anew, a source of exactly ``values`` in one partition.
        values: At least two.
        folder: Where relative paths start.

    Raises:
        AssertionError: It does not.
    """
    context = Context("source", folder or Path())
    for is_impatient in (False, True):
        with anyio.fail_after(LONGEST_WAIT):
            async with make().open(context) as reader:
                fetches = await _read_to_end(reader, is_impatient=is_impatient)
                _check_fetches(fetches, values, context.name)
    with anyio.fail_after(LONGEST_WAIT):
        await _check_source_closes(make, context, values)


async def check_live_source(
    make: Callable[[], Source],
    send: Callable[[Reader, Any], Awaitable[None]],
    values: Sequence[Any],
) -> None:
    """Check a source that waits for records: a waiting receive can be cancelled without loss.

    Args:
        make: Declares a source that has no records yet.
        send: Brings a value to the outside system, or to the reader itself.
        values: What to send.

    Raises:
        AssertionError: It does not.
    """
    with anyio.fail_after(LONGEST_WAIT):
        async with make().open(Context("source")) as reader:
            got: list[Any] = []
            for value in values:
                with anyio.move_on_after(_A_MOMENT) as scope:
                    early = await reader.receive()
                    assert not len(early.batch), f"expected to wait, received {early.batch!r}"
                assert scope.cancelled_caught, "expected receive to wait for a record"
                await send(reader, value)
                while len(got) == 0 or got[-1] != value:
                    got += (await reader.receive()).batch.rows()
            assert got == list(values), f"expected {list(values)}, received {got}"


async def check_sink(
    make: Callable[[], Sink],
    read_back: Callable[[], Awaitable[list[Any]]],
    values: Sequence[Any],
    *,
    consume: Callable[[Writer], Coroutine[Any, Any, None]] | None = None,
    bad: Any = None,
    folder: Path | None = None,
) -> None:
    """Check a sink.

    Args:
        make: Declares, each time anew, a sink that starts empty.
        read_back: Returns the values that have been delivered.
        values: At least two, mappings with the same fields.
        consume: Takes what is written, where the sink waits for that; runs meanwhile.
        bad: A value that the sink cannot encode, if there is one.
        folder: Where relative paths start.

    Raises:
        AssertionError: It does not.
    """
    context = Context("sink", folder or Path())
    with anyio.fail_after(LONGEST_WAIT):
        async with make().open(context) as writer, _meanwhile(consume, writer):
            await writer.flush()
            await _check_order(writer, read_back, list(values))
            if bad is not None:
                await _check_rejection(writer, read_back, list(values), bad)
            await writer.flush()
        await _check_sink_closes(make, context)


async def check_rereading_source(
    make: Callable[[], Source], values: Sequence[Any], *, folder: Path | None = None
) -> None:
    """Check that a source goes on at any position, as after a checkpoint.

    Args:
        make: As for `check_source`.
        values: Likewise.
        folder: Where relative paths start.

    Raises:
        AssertionError: It does not.
    """
    assert make().rereads, "expected a source that says it can be read again"
    context = Context("source", folder or Path(), is_checkpointed=True)
    with anyio.fail_after(LONGEST_WAIT):
        whole = await _read_anew(make(), context)
        for cut in sorted({0, 1, len(values) // 2, len(values) - 1}):
            partition, position, _ = whole[cut]
            resume = Resume(positions={partition.place: position} if cut else {})
            rest = await _read_anew(make(), replace(context, resume=resume))
            assert rest == whole[cut:], f"from record {cut} on: {_difference(whole[cut:], rest)}"


async def check_cut_back_sink(
    make: Callable[[], Sink],
    read_back: Callable[[], Awaitable[list[Any]]],
    values: Sequence[Any],
    *,
    folder: Path | None = None,
) -> None:
    """Check that what a sink wrote after its mark is gone once a run goes on from there.

    Args:
        make: As for `check_sink`.
        read_back: Likewise.
        values: Likewise.
        folder: Where relative paths start.

    Raises:
        AssertionError: It does not.
    """
    assert make().cuts_back, "expected a sink that says it can be cut back"
    context = Context("sink", folder or Path(), is_checkpointed=True)
    start = 0
    with anyio.fail_after(LONGEST_WAIT):
        for stop in (0, 1, len(values)):
            async with make().open(context) as writer:
                if start < stop:
                    await writer.write(make_batch(values[start:stop], start))
                await writer.flush()
                mark = json.loads(json.dumps(dict(await writer.mark())))
                await writer.write(make_batch(values[:2], stop))
                await writer.flush()
            start, context = stop, replace(context, resume=Resume(mark=mark))
        async with make().open(context):
            pass
        got = await read_back()
        assert got == list(values), f"after it was cut back: {_difference(values, got)}"


async def check_stalled_sink(make: Callable[[], Sink], values: Sequence[Any]) -> None:
    """Check that a sink waits when nothing takes its records, and that this can be cancelled.

    Args:
        make: Declares a sink of an outside system that has stopped to take records.
        values: Written again and again, until the sink waits.

    Raises:
        AssertionError: It does not.
    """
    with anyio.fail_after(LONGEST_WAIT):
        async with make().open(Context("sink")) as writer:
            for start in range(0, _MOST_RECORDS, len(values)):
                with anyio.move_on_after(5 * _A_MOMENT) as scope:
                    await writer.write(make_batch(values, start))
                if scope.cancelled_caught:
                    return
            message = f"expected write to wait, it took {_MOST_RECORDS} records"
            raise AssertionError(message)


def make_batch(values: Sequence[Any], start: int = 0, *, in_columns: bool = True) -> Batch:
    """Return ``values`` as a batch of one partition, with offsets from ``start``.

    A `Record` among them also brings its key, timestamp, headers and sender.
    """
    records = [value if isinstance(value, Record) else Record(value) for value in values]
    rows = [record.value for record in records]
    return Batch(
        to_columns(rows) if in_columns else rows,
        [Partition("test")] * len(rows),
        range(start, start + len(rows)),
        keys=if_any([record.key for record in records]),
        timestamps_ms=if_any([record.timestamp_ms for record in records]),
        headers=if_any([record.headers for record in records]),
        senders=if_any([record.sender for record in records]),
    )


@asynccontextmanager
async def _meanwhile(
    consume: Callable[[Writer], Coroutine[Any, Any, None]] | None, writer: Writer
) -> AsyncIterator[None]:
    """Run ``consume`` within the block."""
    failure = None
    async with anyio.create_task_group() as tasks:
        if consume is not None:
            tasks.start_soon(consume, writer)
        try:
            yield
        except Exception as error:  # the task group would wrap it
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _difference(expected: Sequence[Any], got: Sequence[Any]) -> str:
    """Say in a line where two lists differ."""
    same = 0
    while expected[same : same + 1] == got[same : same + 1]:
        same += 1
    return (
        f"expected {len(expected)} records, found {len(got)}; record {same} should be "
        f"{expected[same : same + 1]}, and is {got[same : same + 1]}"
    )


async def _read_to_end(reader: Reader, *, is_impatient: bool) -> list[Fetch]:
    """Return everything; if impatient, with a receive that is cancelled before each one."""
    fetches: list[Fetch] = []
    try:
        while True:
            if is_impatient:
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    fetches.append(await reader.receive())
            fetches.append(await reader.receive())
            await reader.commit(fetches[-1].ends)
            await reader.commit(fetches[-1].ends)
            assert (reader.behind() or 0) >= 0, "expected behind() to be no less than zero"
    except anyio.EndOfStream:
        pass
    try:
        await reader.receive()
    except anyio.EndOfStream:
        return fetches
    message = "expected EndOfStream from every receive after the end"
    raise AssertionError(message)


async def _read_anew(source: Source, context: Context) -> list[tuple[Partition, int, Any]]:
    """Return every record with its place and position."""
    async with source.open(context) as reader:
        batches = [fetch.batch for fetch in await _read_to_end(reader, is_impatient=False)]
    return [
        record
        for batch in batches
        for record in zip(batch.partitions, batch.offsets, batch.rows(), strict=True)
    ]


def _check_fetches(fetches: Sequence[Fetch], values: Sequence[Any], name: str) -> None:
    got = [value for fetch in fetches for value in fetch.batch.rows()]
    assert got == list(values), f"in order: {_difference(values, got)}"
    last: dict[Partition, int] = {}
    for fetch in fetches:
        assert len(fetch.batch) <= _MOST_RECORDS, f"expected bounded batches, found {fetch.batch!r}"
        pairs = zip(fetch.batch.partitions, fetch.batch.offsets, strict=True)
        for partition, offset in pairs:
            assert partition.source == name, f"expected the node's name, found {partition!r}"
            assert offset > last.get(partition, -1), f"expected growing offsets, found {offset}"
            assert fetch.ends[partition] > offset, f"expected an end beyond {offset}"
            last[partition] = offset


async def _check_source_closes(
    make: Callable[[], Source], context: Context, values: Sequence[Any]
) -> None:
    source = make()
    try:
        async with source.open(context) as reader:
            await reader.receive()
            raise _LeaveError
    except _LeaveError:
        pass
    with anyio.CancelScope() as scope:
        async with source.open(context) as reader:
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught, "expected cancellation to go through when it closes"


async def _check_order(
    writer: Writer, read_back: Callable[[], Awaitable[list[Any]]], values: list[Any]
) -> None:
    parts = (values[:1], values[1:])
    for start, (part, in_columns) in enumerate(zip(parts, (True, False), strict=True)):
        rejected = await writer.write(make_batch(part, start, in_columns=in_columns))
        assert rejected is None, f"expected every record to be written, found {rejected!r}"
    await writer.flush()
    got = await read_back()
    assert got == values, f"delivered after flush: {_difference(values, got)}"


async def _check_rejection(
    writer: Writer, read_back: Callable[[], Awaitable[list[Any]]], values: list[Any], bad: Any
) -> None:
    rejected = await writer.write(make_batch([values[0], bad, values[1]], len(values)))
    assert rejected is not None, "expected the bad record to be rejected"
    assert list(rejected.batch.offsets) == [len(values) + 1], "expected only the bad record"
    assert rejected.causes[0], "expected a cause"
    await writer.flush()
    got = await read_back()
    good = values + values[:2]
    assert got == good, f"beside a bad record: {_difference(good, got)}"


async def _check_sink_closes(make: Callable[[], Sink], context: Context) -> None:
    sink = make()
    try:
        async with sink.open(context):
            raise _LeaveError
    except _LeaveError:
        pass
    with anyio.CancelScope() as scope:
        async with sink.open(context):
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught, "expected cancellation to go through when it closes"


class _LeaveError(Exception):
    """Leaves a block as a failing application does."""

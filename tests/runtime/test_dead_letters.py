import logging
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamflow.errors import FailureBudgetError, StreamflowError
from streamflow.graph import FailureBudget, Graph
from streamflow.records import Batch, Partition, split_rejected
from streamflow.runtime.acks import Ledger
from streamflow.runtime.channels import Inbox
from streamflow.runtime.dead_letters import LOGGED_PER_NODE, DeadLetters, FailureCount
from streamflow.testing import ListSink, ListSource

PARTITION = Partition("source", unit="offset")

RUNS = st.lists(
    st.tuples(st.booleans(), st.integers(1, 120) | st.integers(950, 1050)), min_size=1, max_size=6
)


def first_exceeding(bad: list[bool]) -> int | None:
    """Return, record by record, the place of the one that exceeds the budget."""
    rejected = in_a_row = 0
    for index, is_bad in enumerate(bad):
        rejected += is_bad
        in_a_row = in_a_row + 1 if is_bad else 0
        handled = index + 1
        if in_a_row >= 1000 or (handled >= 100 and rejected * 100 > handled):
            return index
    return None


@given(RUNS, st.sets(st.integers(1, 400), max_size=8))
def test_the_budget_is_exceeded_by_the_same_record_however_batched(
    runs: list[tuple[bool, int]], cuts: set[int]
) -> None:
    bad = [is_bad for is_bad, count in runs for _ in range(count)]
    expected = first_exceeding(bad)
    budget = FailureCount(FailureBudget())
    places = [0, *sorted(cut for cut in cuts if cut < len(bad)), len(bad)]
    for start, stop in pairwise(places):
        part = bad[start:stop]
        verdict = budget.handle(len(part), [i for i, is_bad in enumerate(part) if is_bad])
        assert (verdict is not None) == (expected is not None and start <= expected < stop)
        if verdict:
            return
    assert budget.rejected == sum(bad)


@pytest.mark.parametrize(
    ("num_good", "num_bad", "verdict"),
    [
        (0, 99, None),
        (98, 1, None),
        (99, 1, None),
        (98, 2, "2 of 100"),
        (198, 2, None),
        (200, 3, "3 of 203"),
        (99_001, 999, None),
        (200_000, 999, None),
        (200_000, 1000, "1000 in a row"),
    ],
)
def test_the_budget_bears_one_in_a_hundred_and_999_in_a_row(
    num_good: int, num_bad: int, verdict: str | None
) -> None:
    total = num_good + num_bad
    assert FailureCount(FailureBudget()).handle(total, range(num_good, total)) == verdict


def test_one_good_record_ends_a_row() -> None:
    budget = FailureCount(FailureBudget())
    assert budget.handle(200_000) is None
    for _ in range(2):
        assert budget.handle(999, range(999)) is None
        assert budget.handle(1) is None


def test_a_budget_that_was_borne_early_is_judged_at_the_hundredth_record() -> None:
    budget = FailureCount(FailureBudget())
    assert budget.handle(10, range(10)) is None
    assert budget.handle(89) is None
    assert budget.handle(1) == "10 of 100"


def batch_of(count: int, originals: list[bytes] | None = None) -> Batch:
    values = [{"n": n} for n in range(count)]
    return Batch(values, [PARTITION] * count, range(count), originals=originals)


def unexpected(error: StreamflowError) -> None:
    raise error


async def reject(
    count: int,
    bad: dict[int, str],
    *,
    inbox: Inbox | None = None,
    originals: list[bytes] | None = None,
    on_exhausted: Callable[[FailureBudgetError], None] = unexpected,
) -> tuple[DeadLetters, Ledger]:
    """Handle one batch in which some records are bad."""
    ledger = Ledger()
    letters = DeadLetters("parse", inbox.edge() if inbox else None, on_exhausted, FailureBudget())
    _, rejected = split_rejected(batch_of(count, originals), bad)
    await letters.handle(count, rejected, [ledger.track({PARTITION: count})])
    return letters, ledger


@pytest.mark.anyio
async def test_without_a_sink_the_first_are_logged_and_all_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad = {index: f"cause {index}" for index in range(30)}
    letters, ledger = await reject(90, bad)
    assert letters.count == 30
    assert ledger.is_idle
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0] == "parse: rejected the record at {'offset': 0}: cause 0"
    assert len(messages) == LOGGED_PER_NODE + 1
    assert messages[-1] == "parse: further rejected records are counted, not logged"
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


@pytest.mark.anyio
@pytest.mark.parametrize("has_bytes", [True, False])
async def test_a_letter_says_what_was_rejected_where_when_and_why(has_bytes: bool) -> None:
    inbox = Inbox()
    originals = [b"zero", b"one", b"two"] if has_bytes else None
    before = datetime.now(UTC).replace(microsecond=0)
    letters, ledger = await reject(3, {1: "too odd"}, inbox=inbox, originals=originals)
    letters.close()
    parcel = await inbox.receive(10)
    assert parcel is not None
    (letter,) = parcel.batch.rows()
    assert before <= datetime.fromisoformat(letter.pop("time")) <= datetime.now(UTC)
    assert letter == {
        "original": b"one" if has_bytes else {"n": 1},
        "cause": "too odd",
        "node": "parse",
        "attempts": 1,
        "position": {"offset": 1},
        "source": "source",
        "key": None,
        "timestamp_ms": None,
        "headers": [],
    }
    assert not ledger.is_idle  # until the letter is delivered
    parcel.finish()
    assert ledger.is_idle
    assert await inbox.receive(10) is None


@pytest.mark.anyio
async def test_an_exceeded_budget_says_how_far_and_the_last_cause() -> None:
    told: list[FailureBudgetError] = []
    await reject(150, {3: "first", 9: "second"}, on_exhausted=told.append)
    expected = (
        "parse: expected at most 1% rejected records and fewer than 1,000 in a row, "
        "found 2 of 100, the last because: second; mend the data or the graph, or raise "
        "failure_budget"
    )
    assert [str(error) for error in told] == [expected]


def graph_of(source: ListSource, sink: ListSink, letters: ListSink | None = None) -> Graph:
    sinks: dict[str, Any] = {"out": sink}
    return Graph(name="letters", sources={"in": source}, sinks=sinks, dead_letter=letters)


@pytest.mark.anyio
async def test_a_run_over_its_budget_fails_once_everything_in_flight_is_delivered() -> None:
    bad = {10: "odd", 50: "odd", 110: "odd"}
    source = ListSource(values=tuple(range(300)), bad=bad, batch_size=100, stays_open=True)
    sink, letters = ListSink(inputs=("in",)), ListSink()
    async with graph_of(source, sink, letters).open() as run:
        with pytest.raises(FailureBudgetError, match=r"in: expected at most 1% .* 2 of 100"):
            await run.wait()
        assert run.stats().state == "failed"
        assert run.stats().rejected == len(letters.probe.values)
    received = source.probe.num_received
    delivered = [n for n in range(received) if n not in bad]
    assert sink.probe.values == delivered
    assert sink.probe.num_delivered == len(delivered)
    assert [letter["original"] for letter in letters.probe.values] == sorted(
        set(range(received)) & bad.keys()
    )
    assert set(source.probe.committed.values()) == {received}


@pytest.mark.anyio
async def test_records_that_a_sink_cannot_write_become_letters_of_that_sink() -> None:
    source = ListSource(values=tuple(range(20)))
    sink = ListSink(inputs=("in",), reject=lambda value: "too odd" if value == 7 else None)
    letters = ListSink()
    async with graph_of(source, sink, letters).open() as run:
        await run.wait()
        stats = run.stats()
    assert sink.probe.values == [n for n in range(20) if n != 7]
    (letter,) = letters.probe.values
    assert (letter["original"], letter["node"], letter["cause"]) == (7, "out", "too odd")
    assert (stats.nodes["out"].rejected, stats.nodes["out"].sent, stats.delivered) == (1, 19, 20)
    assert set(source.probe.committed.values()) == {20}


@pytest.mark.anyio
async def test_letters_that_the_dead_letter_sink_rejects_are_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = ListSource(values=tuple(range(20)), bad={3: "odd"})
    letters = ListSink(reject=lambda letter: "no room for letters")
    async with graph_of(source, ListSink(inputs=("in",)), letters).open() as run:
        await run.wait()
    assert "dead_letter: rejected the record at {'index': 3}: no room for letters" in caplog.text
    assert set(source.probe.committed.values()) == {20}

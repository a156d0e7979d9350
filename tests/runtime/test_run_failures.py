from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any, ClassVar, Literal

import anyio
import anyio.lowlevel
import pytest

from streamflow.contracts import Context
from streamflow.errors import ConnectorError, GraphError, NodeError, RunStoppedError
from streamflow.records import Partition
from streamflow.runtime import source_task
from streamflow.testing import Gate, ListReader, ListSink, ListSource
from tests.runtime.graphs import (
    BlockingTimes,
    NeverOpens,
    Times,
    graph_of,
    is_closed,
    numbers,
    sink,
)

pytestmark = pytest.mark.anyio

# Failing


@pytest.mark.parametrize("kind", [Times, BlockingTimes])
async def test_a_failing_operator_names_itself(kind: type[Times]) -> None:
    source, out = numbers(30, stays_open=True), sink("double")
    error = ZeroDivisionError("by zero")
    operator = kind(inputs=("in",), error=error)
    graph = graph_of(source, out, operators={"double": operator})
    with anyio.fail_after(10):
        async with graph.open() as run:
            for _ in range(2):
                with pytest.raises(NodeError, match="double: ZeroDivisionError: by zero") as caught:
                    await run.wait()
                assert caught.value.__cause__ is error
            assert run.stats().state == "failed"
    assert (source.probe.commits, out.probe.values) == ([], [])
    assert operator.log == ["opened", "closed"]
    assert is_closed(source, out)


async def test_a_failing_source_names_itself() -> None:
    source, out = numbers(30, fail_after=15, error=ValueError("torn")), sink()
    with anyio.fail_after(10):
        async with graph_of(source, out).open() as run:
            with pytest.raises(NodeError, match="in: ValueError: torn"):
                await run.wait()
    assert is_closed(source, out)


async def test_a_connectors_error_is_told_as_it_is() -> None:
    with anyio.fail_after(10):
        async with graph_of(numbers(30, fail_after=15), sink()).open() as run:
            with pytest.raises(ConnectorError, match="expected data, found a fault"):
                await run.wait()


@pytest.mark.parametrize("error", [ValueError("full"), anyio.EndOfStream()], ids=["value", "end"])
@pytest.mark.parametrize("options", [{"fail_after": 2500}, {"fails_flush": True}])
async def test_nothing_is_committed_past_a_failing_sink(
    options: dict[str, Any], error: Exception
) -> None:
    source = numbers(5000, batch_size=100, stays_open=True)
    good, failing = sink(), sink(error=error, **options)
    with anyio.fail_after(10):
        async with graph_of(source, good, failing).open() as run:
            with pytest.raises(NodeError, match=f"out1: {type(error).__name__}"):
                await run.wait()
    assert max(source.probe.committed.values(), default=0) <= failing.probe.num_delivered
    assert is_closed(source, good, failing)


async def test_nothing_is_committed_before_it_is_flushed() -> None:
    source, out = numbers(30), sink(flush_gate=Gate(is_open=False))
    with anyio.fail_after(10):
        async with graph_of(source, out).open() as run:
            await out.flush_gate.wait_until_held()
            assert out.probe.values != []
            await anyio.wait_all_tasks_blocked()
            run.abort()
            with pytest.raises(RunStoppedError, match="test: expected to finish, found the run ab"):
                await run.wait()
    assert run.stats().state == "failed"
    assert source.probe.commits == []


async def test_aborting_a_run_that_has_ended_changes_nothing() -> None:
    async with graph_of(numbers(30), sink()).open() as run:
        await run.wait()
        run.abort()
        await run.wait()
    assert run.stats().state == "finished"


async def test_whoever_aborts_leaves_in_peace() -> None:
    async with graph_of(numbers(30, stays_open=True), sink()).open() as run:
        await anyio.wait_all_tasks_blocked()
        run.abort()


class HangingSource(ListSource):
    """Never answers a commit."""

    type: Literal["hanging"] = "hanging"  # type: ignore[assignment]

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncGenerator[ListReader]:
        yield HangingReader(self, context.name)


class HangingReader(ListReader):
    async def commit(self, positions: Mapping[Partition, int]) -> None:
        await anyio.sleep_forever()


async def test_a_commit_that_hangs_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_task, "COMMIT_INTERVAL", 0.01)
    monkeypatch.setattr(source_task, "COMMIT_TIMEOUT", 0.01)
    source = HangingSource(values=(1, 2), stays_open=True)
    with anyio.fail_after(10):
        async with graph_of(source, sink()).open() as run:
            with pytest.raises(ConnectorError, match=r"in: expected to commit within 0\.01 s"):
                await run.wait()


async def test_a_failure_that_nobody_waited_for_is_raised_on_leaving() -> None:
    source = numbers(30, fail_after=15, error=ValueError("torn"))
    with anyio.fail_after(10), pytest.raises(NodeError, match="in: ValueError: torn"):
        async with graph_of(source, sink()).open():
            await anyio.wait_all_tasks_blocked()


async def test_a_failure_does_not_disturb_the_body() -> None:
    reached = []

    async def embed() -> None:
        async with graph_of(numbers(3, fail_after=0, error=ValueError("torn")), sink()).open():
            await anyio.wait_all_tasks_blocked()
            await anyio.lowlevel.checkpoint()
            reached.append("end of the body")

    with pytest.raises(NodeError, match="torn"):
        await embed()
    assert reached == ["end of the body"]


class Stop(BaseException):
    """As `KeyboardInterrupt` is, no `Exception`."""


@pytest.mark.parametrize("error", [KeyError("mine"), StopAsyncIteration("mine"), Stop("mine")])
async def test_the_bodys_exception_abandons_the_run_and_is_raised_unchanged(
    error: BaseException,
) -> None:
    source, out = numbers(30, stays_open=True), sink(gate=Gate(is_open=False))

    async def embed() -> None:
        async with graph_of(source, out).open():
            await out.gate.wait_until_held()
            raise error

    with anyio.fail_after(10), pytest.raises(type(error)) as caught:
        await embed()
    assert caught.value is error
    assert source.probe.commits == []
    assert is_closed(source, out)


async def test_cancellation_from_outside_ends_the_run() -> None:
    source, out = numbers(30, stays_open=True), sink(gate=Gate(is_open=False))
    with anyio.fail_after(10):
        with anyio.CancelScope() as scope:
            async with graph_of(source, out).open() as run:
                await out.gate.wait_until_held()
                scope.cancel()
                await run.wait()
    assert scope.cancelled_caught
    assert source.probe.commits == []
    assert is_closed(source, out)


# Opening


@pytest.mark.parametrize("kind", [Times, BlockingTimes])
async def test_a_node_that_does_not_open_closes_the_others(kind: type[Times]) -> None:
    source, out = numbers(30), sink("late")
    good = kind(inputs=("in",))
    bad = kind(inputs=("double",), opening_error=ValueError("no such thing"))
    graph = graph_of(source, out, operators={"double": good, "late": bad})
    with anyio.fail_after(10), pytest.raises(NodeError, match="late: ValueError: no such thing"):
        async with graph.open():
            pytest.fail("the block was entered")
    assert source.probe.num_received == 0
    assert good.log in ([], ["opened", "closed"])
    assert is_closed(source, out)


async def test_a_sink_that_does_not_open_closes_the_source() -> None:
    source = numbers(30)
    with anyio.fail_after(10), pytest.raises(NodeError, match="out0: OSError: refused"):
        async with graph_of(source, NeverOpens(inputs=("in",), error=OSError("refused"))).open():
            pytest.fail("the block was entered")
    assert (source.probe.num_received, source.probe.num_open) == (0, 0)


async def test_cancellation_while_opening_closes_what_is_open() -> None:
    source = numbers(30)
    with anyio.move_on_after(0.05) as scope:
        async with graph_of(source, NeverOpens(inputs=("in",))).open():
            pytest.fail("the block was entered")
    assert scope.cancelled_caught
    assert (source.probe.num_received, source.probe.num_open) == (0, 0)


class NotInstalled(ListSink):
    """Needs a package that nobody has."""

    type: Literal["absent"] = "absent"  # type: ignore[assignment]
    requires: ClassVar[dict[str, str]] = {"no_such_module_at_all": "streamflow-online[absent]"}


async def test_a_missing_package_is_found_before_anything_is_opened() -> None:
    source = numbers(3)
    with pytest.raises(GraphError, match=r"sinks\.out0: .*streamflow-online\[absent\]"):
        async with graph_of(source, NotInstalled(inputs=("in",))).open():
            pytest.fail("the block was entered")
    assert source.probe.num_received == 0

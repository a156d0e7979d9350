"""Stopping: within its deadline whatever the run is at, and without a trace."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import anyio
import pytest
from anyio import from_thread

from streamflow.checkpoints import Snapshot
from streamflow.contracts import Context, Processed, Processor
from streamflow.errors import NodeError
from streamflow.graph import Graph
from streamflow.nodes import Operator
from streamflow.operators.step import Step
from streamflow.records import Batch
from streamflow.runtime.run import Run, opened_run
from streamflow.runtime.starting import Checkpointing
from streamflow.testing import Gate, ListSink
from tests.runtime.graphs import graph_of, numbers, sink
from tests.traces import PLENTY, traceless

LATE = "expected to finish within"


class Learning(Operator):
    """Is at a record, in its thread, until it is let go on."""

    type: Literal["learning"] = "learning"
    blocking: ClassVar[bool] = True
    begun: anyio.Event
    may_end: threading.Event

    @contextmanager
    def open(self, context: Context) -> Iterator[Processor]:
        yield LearningStep(self)


class LearningStep(Step):
    def __init__(self, operator: Learning) -> None:
        self._operator = operator

    def process(self, batch: Batch) -> Processed:
        from_thread.run_sync(self._operator.begun.set)
        self._operator.may_end.wait(PLENTY)
        return Processed(batch)


def checkpointed(out: ListSink, *, timeout: float) -> Graph:
    """Return a graph that takes a checkpoint after four records, and has more."""
    source = numbers(30, batch_size=4, stays_open=True)
    settings = {"path": "nowhere", "every": 4}
    return graph_of(source, out, checkpoint=settings, shutdown_timeout=timeout)


def opened(graph: Graph, write: Callable[[Snapshot], object]) -> Any:
    return opened_run(graph, Checkpointing(None, False, write))


async def stop_late(run: Run) -> None:
    with pytest.raises(NodeError, match=LATE):
        await run.stop()


def test_what_is_being_learned_at_a_stop_is_learned_to_its_end() -> None:
    async def main() -> None:
        learning = Learning(inputs=("in",), begun=anyio.Event(), may_end=threading.Event())
        source, out = numbers(30, stays_open=True), sink("learning")
        with anyio.fail_after(PLENTY):
            async with graph_of(source, out, operators={"learning": learning}).open() as run:
                await learning.begun.wait()
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(run.stop)
                    await anyio.wait_all_tasks_blocked()
                    learning.may_end.set()
        assert out.probe.values == list(range(source.probe.num_received))
        assert sum(source.probe.committed.values()) == source.probe.num_received

    traceless(main)


@pytest.mark.parametrize("gate", ["gate", "flush_gate", "mark_gate"])
def test_a_sink_that_does_not_return_is_abandoned(gate: str) -> None:
    async def main() -> None:
        shut = Gate(is_open=False)
        out = sink(**{gate: shut})
        written: list[Snapshot] = []
        with anyio.fail_after(PLENTY):
            async with opened(checkpointed(out, timeout=0.05), written.append) as run:
                await shut.wait_until_held()
                await stop_late(run)
        assert written == []
        assert out.probe.num_open == 0

    traceless(main)


def test_a_checkpoint_under_way_at_a_stop_is_finished() -> None:
    async def main() -> None:
        shut = Gate(is_open=False)
        out = sink(mark_gate=shut)
        written: list[Snapshot] = []
        with anyio.fail_after(PLENTY):
            async with opened(checkpointed(out, timeout=PLENTY), written.append) as run:
                await shut.wait_until_held()
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(run.stop)
                    await anyio.wait_all_tasks_blocked()
                    assert written == []
                    shut.open()
        assert written[-1].records["in"] == len(out.probe.values) >= 4

    traceless(main)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["stop", "abort"])
def test_a_checkpoint_whose_disk_does_not_answer_is_abandoned(ending: str) -> None:
    async def main() -> None:
        begun, answers = anyio.Event(), threading.Event()

        def write(snapshot: Snapshot) -> None:
            from_thread.run_sync(begun.set)
            answers.wait(PLENTY)

        out = sink()
        graph = checkpointed(out, timeout=0.05)
        with anyio.fail_after(PLENTY / 2):
            async with opened(graph, write) as run:
                await begun.wait()
                if ending == "stop":
                    await stop_late(run)
                else:
                    run.abort()
        assert not answers.is_set()
        assert numbers_committed(graph) == {}
        answers.set()  # else the thread would outlive the loop

    traceless(main)


def numbers_committed(graph: Graph) -> Any:
    source: Any = graph.sources["in"]
    return source.probe.committed


def test_the_folder_of_checkpoints_is_free_after_a_stop(tmp_path: Path) -> None:
    async def main() -> None:
        graph = checkpointed(sink(), timeout=PLENTY)
        settings = {"path": str(tmp_path / "cp"), "every": 4}
        graph = graph_of(graph.sources["in"], sink(), checkpoint=settings)
        with anyio.fail_after(PLENTY):
            async with graph.open() as run:
                await run.stop()

    traceless(main)
    assert not list(tmp_path.glob("cp/.*.*"))

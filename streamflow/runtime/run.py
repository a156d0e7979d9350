"""A graph at work: opens its nodes, runs one task for each, and ends in one of a few clear ways.

The nodes run under a supervisor that keeps their failure for whoever asks: `Run.wait`, or else the
end of the ``async with`` block. So the embedding application is never cancelled by the graph.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol, runtime_checkable

import anyio
from anyio.abc import TaskStatus

from streamflow.errors import (
    CheckpointError,
    ConnectorError,
    MissingExtraError,
    NodeError,
    RunStoppedError,
    StreamflowError,
    suggestion,
)
from streamflow.graph.graph import GraphDeclaration, Start
from streamflow.records import Headers, Record
from streamflow.runtime.building import build_tasks, coordinate
from streamflow.runtime.checkpoints import Coordinator
from streamflow.runtime.receiver_tasks import SinkTask
from streamflow.runtime.source_task import SourceTask
from streamflow.runtime.starting import Checkpointing, check_graph, opened_checkpoints
from streamflow.runtime.stats import CheckpointStats, NodeStats, Stats
from streamflow.runtime.tasks import NodeTask

logger = logging.getLogger("streamflow")


@runtime_checkable
class Pushable(Protocol):
    """A reader that the application pushes records to."""

    async def send(
        self, value: Any, *, key: Any, timestamp_ms: int | None, headers: Headers
    ) -> None:
        """Take a record, waiting while there is no room."""
        ...

    async def end(self) -> None:
        """Say that there will be no more."""
        ...


@runtime_checkable
class Pullable(Protocol):
    """A writer that the application takes records from."""

    def records(self) -> AsyncIterator[Record]:
        """Yield records as they come, to the end of the stream."""
        ...

    def abandon(self) -> None:
        """Discard from now on what nobody will take."""
        ...


class Run:
    """A running graph; `streamflow.Graph.open` makes one."""

    def __init__(self, graph: GraphDeclaration, checkpoints: Checkpointing | None = None) -> None:
        self._graph = graph
        self._tasks = build_tasks(graph, self._fail, checkpoints)
        self._coordinator: Coordinator | None = None
        if checkpoints is not None:
            self._coordinator = coordinate(self._tasks, graph, checkpoints)
        self._unopened = len(self._tasks)
        self._at_work = {task.name: task for task in self._tasks}
        self._all_opened = anyio.Event()
        self._stopping = anyio.Event()
        self._done = anyio.Event()
        self._scope = anyio.CancelScope()
        self._started = time.monotonic()
        self._ended: float | None = None
        self._failure: StreamflowError | None = None
        self._is_failure_told = False

    def __repr__(self) -> str:
        stats = self.stats()
        return (
            f"<Run {self._graph.name}: {stats.state}, {stats.received} received, "
            f"{stats.delivered} delivered, {stats.rejected} rejected>"
        )

    def stats(self) -> Stats:
        """Return what the run can say about itself at this moment."""
        nodes: dict[str, NodeStats] = {task.name: task.stats() for task in self._tasks}
        elapsed = (self._ended or time.monotonic()) - self._started
        return Stats(self._state(), elapsed, nodes, self._checkpoint_stats())

    def _checkpoint_stats(self) -> CheckpointStats | None:
        made = self._coordinator
        if made is None:
            return None
        age = None if made.safe_since is None else time.monotonic() - made.safe_since
        return CheckpointStats(made.taken, made.failed, made.failure, made.paused, age)

    async def wait(self) -> None:
        """Wait until all streams have ended and everything is delivered.

        Raises:
            StreamflowError: The run failed; a `NodeError` names the node.
        """
        await self._done.wait()
        self._tell_failure()

    async def stop(self) -> None:
        """Receive no more, finish what is in flight, and wait until that is done.

        Records that were pushed are in flight as soon as `send` has taken them.
        What is not finished after the graph's ``shutdown_timeout`` is abandoned: it stays
        unacknowledged, so a later run reads it again.

        Raises:
            StreamflowError: The run failed, or did not finish in time.
        """
        self._stop()
        await self.wait()

    def abort(self) -> None:
        """End at once, abandoning what is in flight; whoever waits is told, leaving is not."""
        if not (self._failure or self._done.is_set()):
            message = f"{self._graph.name}: expected to finish, found the run aborted"
            self._failure = RunStoppedError(message)
            self._is_failure_told = True  # to whoever aborts
        self._stop()
        self._scope.cancel()

    async def send(
        self,
        name: str,
        value: Any,
        *,
        key: Any = None,
        timestamp_ms: int | None = None,
        headers: Headers = (),
    ) -> None:
        """Push a record into the memory source ``name``, waiting while it has no room.

        Raises:
            KeyError: There is no source of this name.
            TypeError: It takes no records that are pushed.
            RunStoppedError: The run takes no more records.
        """
        reader = self._pushable(name)
        if self._stopping.is_set() or self._done.is_set():
            message = f"{name}: expected a running graph, found one that is {self._state()}"
            raise RunStoppedError(message)
        await reader.send(value, key=key, timestamp_ms=timestamp_ms, headers=headers)

    async def end(self, name: str) -> None:
        """Say that no more records will be pushed into the memory source ``name``.

        Raises:
            KeyError: There is no source of this name.
            TypeError: It takes no records that are pushed.
        """
        await self._pushable(name).end()

    async def records(self, name: str) -> AsyncIterator[Record]:
        """Yield the records of the memory sink ``name`` to the end of the stream.

        Raises:
            KeyError: There is no sink of this name.
            TypeError: It keeps no records to be read.
            StreamflowError: The run failed.
        """
        task = self._task(name, "sink")
        writer = task.writer if isinstance(task, SinkTask) else None
        if not isinstance(writer, Pullable):
            message = (
                f"{name}: expected a sink that can be read here, found another; use type: memory"
            )
            raise TypeError(message)
        async for record in writer.records():
            yield record
        self._tell_failure()

    def _pushable(self, name: str) -> Pushable:
        task = self._task(name, "source")
        reader = task.reader if isinstance(task, SourceTask) else None
        if not isinstance(reader, Pushable):
            message = (
                f"{name}: expected a source that can be pushed to, found another; use type: memory"
            )
            raise TypeError(message)
        return reader

    def _task(self, name: str, kind: str) -> NodeTask:
        known = {task.name: task for task in self._tasks if task.kind == kind}
        if name not in known:
            message = (
                f"expected the name of a {kind}, found {name!r}; {suggestion(name, list(known))}"
            )
            raise KeyError(message)
        return known[name]

    def _state(self) -> str:
        if self._failure:
            return "failed"
        if self._done.is_set():
            return "finished"
        return "stopping" if self._stopping.is_set() else "running"

    def _leave(self) -> None:
        """Stop, since nobody will push or take records any more."""
        for task in self._tasks:
            if isinstance(task, SinkTask) and isinstance(task.writer, Pullable):
                task.writer.abandon()
        self._stop()

    def _stop(self) -> None:
        self._stopping.set()
        if self._coordinator is not None:
            self._coordinator.suspend()
        for task in self._tasks:
            if isinstance(task, SourceTask) and not isinstance(task.reader, Pushable):
                task.stop()

    def _fail(self, failure: StreamflowError) -> None:
        """Let the run end with ``failure`` once everything in flight is finished."""
        self._failure = self._failure or failure
        self._stop()

    def _tell_failure(self) -> None:
        if self._failure:
            self._is_failure_told = True
            raise self._failure

    async def _supervise(self, *, task_status: TaskStatus[None]) -> None:
        """Run the tasks of all nodes to their end, or to the first failure."""
        try:
            with self._scope:
                async with anyio.create_task_group() as watch:
                    watch.start_soon(self._end_pushing)
                    watch.start_soon(self._limit_shutdown)
                    async with anyio.create_task_group() as group:
                        for task in self._tasks:
                            group.start_soon(self._run_task, task)
                        await self._all_opened.wait()
                        self._started = time.monotonic()
                        if self._coordinator is not None:
                            group.start_soon(self._take_checkpoints, self._coordinator)
                        task_status.started()
                    watch.cancel_scope.cancel()
        finally:
            self._ended = time.monotonic()
            self._done.set()

    async def _end_pushing(self) -> None:
        """Let the sources that are pushed to end, once stopping, after what they have taken."""
        await self._stopping.wait()
        for task in self._tasks:
            if isinstance(task, SourceTask) and isinstance(task.reader, Pushable):
                await task.reader.end()

    async def _limit_shutdown(self) -> None:
        """Abandon what is in flight when stopping takes too long."""
        await self._stopping.wait()
        await anyio.sleep(self._graph.shutdown_timeout)
        receivers = [name for name, task in self._at_work.items() if task.kind != "source"]
        names = ", ".join(receivers or self._at_work)
        message = (
            f"{self._graph.name}: expected to finish within {self._graph.shutdown_timeout:g} s "
            f"after stopping, found still at work: {names}; what they hold stays unacknowledged; "
            f"raise shutdown_timeout or look at the last of these nodes"
        )
        self._failure = self._failure or NodeError(message)
        self._scope.cancel()

    async def _run_task(self, task: NodeTask) -> None:
        async def opened() -> None:
            self._unopened -= 1
            if not self._unopened:
                self._all_opened.set()
            await self._all_opened.wait()

        try:
            await task.run(opened)
        except Exception as error:
            self._failure = self._failure or _node_error(task.name, _first(error))
            self._scope.cancel()
        else:
            del self._at_work[task.name]

    async def _take_checkpoints(self, coordinator: Coordinator) -> None:
        try:
            await coordinator.run()
        except Exception as error:
            self._failure = self._failure or _node_error("checkpoint", _first(error))
            self._scope.cancel()


@asynccontextmanager
async def open_run(graph: GraphDeclaration, *, start: Start, instance: str) -> AsyncIterator[Run]:
    """Check the graph, open its nodes, and give the run; see `streamflow.Graph.open`.

    Raises:
        GraphError: The graph cannot run.
        StreamflowError: As `opened_run`.
    """
    await check_graph(graph)
    async with (
        opened_checkpoints(graph, start, instance) as checkpoints,
        opened_run(graph, checkpoints) as run,
    ):
        yield run


@asynccontextmanager
async def opened_run(
    graph: GraphDeclaration, checkpoints: Checkpointing | None
) -> AsyncIterator[Run]:
    """Open the nodes of a graph that has been checked, and give the run.

    Raises:
        StreamflowError: A node could not be opened, or the run failed and nobody was told.
    """
    if checkpoints is None:
        _warn_of_fresh_weights(graph)
    run = Run(graph, checkpoints)
    failure: BaseException | None = None
    async with anyio.create_task_group() as group:
        # An exception would leave the task group inside an exception group: carry it around it.
        try:
            await group.start(run._supervise)
        except RuntimeError:  # anyio's word for a task that ended before it had started
            failure = run._failure
        if failure is None:
            try:
                yield run
                run._leave()
                await run._done.wait()
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as error:
                failure = error
                run.abort()
    if failure:
        raise failure
    if not run._is_failure_told:
        run._tell_failure()


def _warn_of_fresh_weights(graph: GraphDeclaration) -> None:
    """Say that what was learned before is not there where a source goes on from its positions."""
    resuming = [name for name, source in graph.sources.items() if source.keeps_positions]
    learning = [name for name, model in graph.models.items() if model.learn]
    if resuming and learning:
        logger.warning(
            "%s: every run begins with fresh weights, while %s goes on at its committed positions; "
            "what earlier runs learned is not kept",
            ", ".join(learning),
            ", ".join(resuming),
        )


def _first(error: BaseException) -> BaseException:
    """Return the first exception within nested groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _node_error(name: str, error: BaseException) -> StreamflowError:
    """Return an error that names the node, with the original as its cause."""
    if isinstance(error, MissingExtraError | ConnectorError | CheckpointError | NodeError):
        return error  # says where already
    failure = NodeError(f"{name}: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure

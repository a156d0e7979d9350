"""Graphs for the tests of the runtime."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, ClassVar, Literal

import anyio

from streamflow.contracts import Context, Processed, Processor, Writer
from streamflow.graph import Graph
from streamflow.nodes import Operator, Sink, Source
from streamflow.operators.step import Step
from streamflow.records import Batch
from streamflow.testing import ListSink, ListSource


class Times(Operator):
    """Multiplies numbers on the event loop; says when it is open."""

    type: Literal["times"] = "times"
    factor: int = 2
    error: Exception | None = None
    opening_error: Exception | None = None
    log: list[str] = []  # noqa: RUF012  # pydantic copies it for each instance

    @contextmanager
    def open(self, context: Context) -> Iterator[Processor]:
        if self.opening_error:
            raise self.opening_error
        self.log.append("opened")
        try:
            yield TimesStep(self)
        finally:
            self.log.append("closed")


class BlockingTimes(Times):
    """The same in a worker thread."""

    type: Literal["blocking_times"] = "blocking_times"  # type: ignore[assignment]
    blocking: ClassVar[bool] = True


class TimesStep(Step):
    def __init__(self, operator: Times) -> None:
        self._operator = operator

    def process(self, batch: Batch) -> Processed:
        if self._operator.error:
            raise self._operator.error
        values = [value * self._operator.factor for value in batch.rows()]
        return Processed(batch.with_values(values))


class NeverOpens(Sink):
    """A sink whose opening waits or fails."""

    type: Literal["never"] = "never"
    error: Exception | None = None

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[Writer]:
        if self.error:
            raise self.error
        await anyio.sleep_forever()
        yield  # type: ignore[misc]


def numbers(count: int, **options: Any) -> ListSource:
    return ListSource(values=tuple(range(count)), **options)


def graph_of(source: Source, *sinks: Sink, **options: Any) -> Graph:
    named = {f"out{index}": sink for index, sink in enumerate(sinks)}
    return Graph(**{"name": "test", "sources": {"in": source}, "sinks": named} | options)


def sink(*inputs: str, **options: Any) -> ListSink:
    return ListSink(inputs=inputs or ("in",), **options)


def is_closed(source: ListSource, *sinks: ListSink) -> bool:
    return source.probe.num_open == 0 and all(item.probe.num_open == 0 for item in sinks)

"""A stream full of malformed records: none is lost, the good ones are predicted, memory stays flat.

STREAMFLOW_TEST_MALFORMED=1000000 takes so many malformed records instead of 20,000.
"""

import os
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Literal

import anyio
import pytest

from streamflow.contracts import Context, Writer
from streamflow.graph import Graph
from streamflow.models.model import Model
from streamflow.nodes import Sink
from streamflow.records import Batch, Rejected
from streamflow.runtime.letters import Letter, LetterFile
from streamflow_connectors.files import FileSink, FileSource

NUM_BAD = int(os.environ.get("STREAMFLOW_TEST_MALFORMED", "20000"))
EVERY = 10
"""One record of so many is good."""

PADDING = b"p" * (20_000_000 // NUM_BAD)

MOST_BYTES = 10_000_000 + 20 * NUM_BAD
"""By which what Python holds may grow within a run; the malformed records alone are far more."""


def is_good(number: int) -> bool:
    return number % EVERY == 1


def line(number: int) -> bytes:
    """Return a record by its place in the file, from 1; malformed in one of three ways."""
    if is_good(number):
        return b'{"x": 0.5, "y": %d}' % (number % 7)
    start = (b'{"x": 0.5, "y": ', b'{"x": null, "pad": "', b'{"y": 1, "pad": "')[number % 3]
    return start + b"%d " % number + PADDING + (b'"}' if number % 3 else b"")


def numbers() -> Iterator[int]:
    """Yield the places of the records, to the last malformed one."""
    bad = 0
    for number in count(1):
        yield number
        bad += not is_good(number)
        if bad == NUM_BAD:
            return


class Counting(Sink):
    """Counts predictions, and notes how much memory Python holds at each write."""

    type: Literal["counting"] = "counting"
    lines: list[int] = []  # noqa: RUF012  # pydantic copies it for each instance
    held: list[int] = []  # noqa: RUF012

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[Writer]:
        yield CountingWriter(self)


class CountingWriter:
    def __init__(self, sink: Counting) -> None:
        self._sink = sink

    async def write(self, batch: Batch) -> Rejected | None:
        await anyio.lowlevel.checkpoint()
        self._sink.lines.extend(batch.offsets)
        self._sink.held.append(tracemalloc.get_traced_memory()[0])
        return None

    async def flush(self) -> None:
        await anyio.lowlevel.checkpoint()

    async def mark(self) -> dict[str, object]:
        return {}


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.timeout(3600)
async def test_none_is_lost_however_many_are_malformed(tmp_path: Path) -> None:
    with (tmp_path / "in.jsonl").open("wb") as file:
        file.writelines(line(number) + b"\n" for number in numbers())
    model = Model(
        inputs=("rows",),
        network=({"Linear": [1, 1]},),
        features=("x",),
        target="y",
        compile=False,
    )
    sink = Counting(inputs=("m",))
    graph = Graph(
        name="malformed",
        sources={"rows": FileSource(path=str(tmp_path / "in.jsonl"))},
        models={"m": model},
        sinks={"out": sink},
        dead_letter=FileSink(path=str(tmp_path / "dead.jsonl")),
        failure_budget="none",
    )
    graph.deep_problems()  # imports torch, whose modules are no part of what grows
    tracemalloc.start()
    try:
        async with graph.open() as run:
            await run.wait()
            stats = run.stats()
    finally:
        tracemalloc.stop()
    assert max(sink.held) - sink.held[0] < MOST_BYTES
    assert stats.rejected == NUM_BAD
    expected = set(numbers())
    good = set(filter(is_good, expected))
    assert len(sink.lines) == len(good)
    assert set(sink.lines) == good
    async for batch in LetterFile(tmp_path / "dead.jsonl").batches():
        for letter in batch:
            assert isinstance(letter, Letter)
            assert letter.payload == line(letter.offset)
            expected.remove(letter.offset)  # and none comes twice
    assert expected == good

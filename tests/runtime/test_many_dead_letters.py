"""A stream full of malformed records: none is lost, the good ones are predicted, memory stays flat.

STREAMFLOW_TEST_MALFORMED=1000000 takes so many malformed records instead of 20,000.
"""

import os
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import anyio
import pytest

from streamflow.graph import Graph
from streamflow.models.declaration import Model
from streamflow.nodes import Context, Sink, Writer
from streamflow.records import Batch, Rejected
from streamflow.runtime.letters import Letter, LetterFile
from streamflow_connectors.files import FileSink, FileSource

NUM_BAD = int(os.environ.get("STREAMFLOW_TEST_MALFORMED", "20000"))
EVERY = 10
"""One record of so many is good."""

PADDING = 1000

MOST_BYTES = NUM_BAD * PADDING // 2
"""By which what Python holds may grow within a run: far less than all malformed records take."""


def lines() -> Iterator[bytes]:
    """Yield records: one in ten good, the others malformed in three ways, in turn."""
    number = bad = 0
    while bad < NUM_BAD:
        if number % EVERY == 0:
            yield b'{"x": 0.5, "y": %d}' % (number % 7)
        else:
            bad += 1
            start = (b'{"x": 0.5, "y": ', b'{"x": null, "pad": "', b'{"y": 1, "pad": "')[number % 3]
            yield start + b"%d " % number + b"p" * PADDING + (b'"}' if number % 3 else b"")
        number += 1


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


@pytest.mark.asyncio
@pytest.mark.timeout(3600)
async def test_none_is_lost_however_many_are_malformed(tmp_path: Path) -> None:
    with (tmp_path / "in.jsonl").open("wb") as file:
        file.writelines(line + b"\n" for line in lines())
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
    good = {number + 1 for number, line in enumerate(lines()) if number % EVERY == 0}
    assert len(sink.lines) == len(good)
    assert set(sink.lines) == good
    letters = 0
    originals = dict(zip(range(1, stats.received + 1), lines(), strict=True))
    async for batch in LetterFile(tmp_path / "dead.jsonl").batches():
        for letter in batch:
            assert isinstance(letter, Letter)
            assert letter.payload == originals.pop(letter.offset)  # and none comes twice
            letters += 1
    assert letters == NUM_BAD
    assert originals.keys() == good

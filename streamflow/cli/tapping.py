"""``streamflow tap``: what a node sends, printed, while nothing else is touched.

Only what the node receives from is opened, and a sink that prints. No position is committed, no
checkpoint is read or taken, no sink of the graph is opened.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

import anyio
from anyio import to_thread
from cyclopts import Parameter
from pydantic import PrivateAttr
from rich.console import Console
from rich.text import Text

from streamflow.cli import exit_codes
from streamflow.cli.checking import read_or_explain
from streamflow.cli.parameters import GraphFile, Overrides
from streamflow.cli.running import log_to, run_in_foreground
from streamflow.codecs.conversion import encode
from streamflow.codecs.formats import named_format
from streamflow.contracts import Context, Writer
from streamflow.dataflow import Graph
from streamflow.errors import GraphError, Problem, RunStoppedError, suggestion
from streamflow.nodes.declarations import Sink, Source
from streamflow.records import Batch, Rejected
from streamflow.runtime.run import Run

TAP = "tap"


class Tap(Sink):
    """Prints records as lines of JSON, and ends the run after so many."""

    type: Literal["tap"] = "tap"
    limit: int | None = None
    meta: bool = False

    _run: Run | None = PrivateAttr(None)
    _count: int = PrivateAttr(0)
    _is_unread: bool = PrivateAttr(False)

    @property
    def stores_positions(self) -> bool:
        """As if it did: so nobody commits any."""
        return True

    @property
    def is_full(self) -> bool:
        """Whether all that was asked for is printed, or nobody reads it any more."""
        return self._is_unread or (self.limit is not None and self._count >= self.limit)

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[Writer]:
        """Give what prints."""
        yield TapWriter(self)


class TapWriter:
    """Prints the records of a `Tap`."""

    def __init__(self, tap: Tap) -> None:
        self._tap = tap
        self._codec = named_format("jsonl").codec()

    async def write(self, batch: Batch) -> Rejected | None:
        """Print a batch, or as much of it as is wanted."""
        tap = self._tap
        if tap.limit is not None:
            batch = batch.slice(0, tap.limit - tap._count)
        shown = batch.with_values(_with_meta(batch)) if tap.meta else batch
        _, payloads, rejected = encode(self._codec, shown)
        try:
            await to_thread.run_sync(_print, payloads)
        except BrokenPipeError:  # whoever read it has seen enough
            tap._is_unread = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left
        tap._count += len(batch)
        if tap.is_full and tap._run is not None:
            tap._run.abort()
        return rejected

    async def flush(self) -> None:
        """Do nothing: what is printed is printed."""
        await anyio.lowlevel.checkpoint()

    async def mark(self) -> Mapping[str, Any]:
        """Return nothing: there are no checkpoints."""
        return {}


def _with_meta(batch: Batch) -> list[Any]:
    """Return values with all that records carry besides."""
    return [
        {
            "value": record.value,
            "key": record.key,
            "time_ms": record.timestamp_ms,
            "source": dict(record.position or {}),
        }
        for record in batch.records()
    ]


def _print(payloads: list[bytes]) -> None:
    sys.stdout.buffer.write(b"".join(payload + b"\n" for payload in payloads))
    sys.stdout.buffer.flush()


def tapped(graph: Graph, node: str, tap: Tap) -> Graph:
    """Return the part of a graph that a node receives from, ending in a tap.

    Args:
        graph: The whole graph.
        node: Name of a source, operator or model; of a sink for what it receives.
        tap: What prints, without inputs.

    Raises:
        GraphError: There is no such node, or a source takes its records from others.
    """
    edges = {name: inputs for nodes in graph.inputs().values() for name, inputs in nodes.items()}
    if node not in edges:
        cure = suggestion(node, list(edges))
        raise GraphError([Problem((node,), f"expected a node of the graph, found none; {cure}")])
    inputs = edges[node] if node in graph.sinks else (node,)
    wanted = list(inputs)
    for name in wanted:  # grows on the way
        wanted += [sender for sender in edges[name] if sender not in wanted]
    return graph.model_copy(
        update={
            "sources": {n: _watching(n, s) for n, s in graph.sources.items() if n in wanted},
            "operators": {n: o for n, o in graph.operators.items() if n in wanted},
            "models": {n: m for n, m in graph.models.items() if n in wanted},
            "sinks": {TAP if TAP not in wanted else f"{TAP}-{node}": _fed(tap, inputs)},
            "dead_letter": None,
            "checkpoint": None,
            "failure_budget": "none",
        }
    )


def _fed(tap: Tap, inputs: tuple[str, ...]) -> Tap:
    return tap.model_copy(update={"inputs": inputs})


def _watching(name: str, source: Source) -> Source:
    watching = source.watching()
    if watching is None:
        message = (
            "expected a source that can be read beside others, found one that takes records away "
            "from them; tap a copy of the stream"
        )
        raise GraphError([Problem(("sources", name), message)])
    return watching


def tap(
    file: GraphFile,
    node: Annotated[
        str, Parameter(help="Node whose output to print; of a sink, what it receives.")
    ],
    *,
    limit: Annotated[
        int | None, Parameter(name=["--limit", "-n"], help="End after so many records.")
    ] = None,
    meta: Annotated[
        bool, Parameter(negative=(), help="Print key, time and position, too.")
    ] = False,
    overrides: Overrides = (),
) -> int:
    """Print what a node sends until the stream ends; return the exit code."""
    if limit is not None and limit < 1:
        sys.stderr.write(f"--limit: expected a number of at least 1, found {limit}; correct it\n")
        return exit_codes.USAGE
    graph = read_or_explain(file, overrides)
    if graph is None:
        return exit_codes.BAD_CONFIGURATION
    try:
        part = tapped(graph, node, Tap(limit=limit, meta=meta))
    except GraphError as error:
        sys.stderr.write(f"{error}\n")
        return exit_codes.USAGE
    [end] = part.sinks.values()
    assert isinstance(end, Tap)

    @asynccontextmanager
    async def opening() -> AsyncIterator[Run]:
        async with part.open() as run:
            end._run = run
            yield run

    console = Console(stderr=True, force_terminal=False)
    log_to(console)
    outcome = anyio.run(run_in_foreground, opening, console, part.shutdown_timeout)
    if isinstance(outcome.failure, RunStoppedError) and end.is_full:
        return 0
    if outcome.failure:
        console.print(Text(f"failed: {outcome.failure}"), soft_wrap=True)
    return outcome.exit_code

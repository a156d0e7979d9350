"""``streamflow run``: a graph in the foreground, with signals, a live line and a report."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated

import anyio
from anyio.abc import TaskStatus
from cyclopts import Parameter
from rich.console import Console
from rich.live import Live
from rich.text import Text

from streamflow.cli import exit_codes
from streamflow.cli.checking import read_or_explain
from streamflow.cli.parameters import GraphFile, Json, Overrides
from streamflow.dataflow import Graph
from streamflow.errors import GraphError, StreamflowError
from streamflow.graph.graph import Start
from streamflow.observe.live import LiveLine
from streamflow.observe.report import report_data, report_tables
from streamflow.runtime.run import Run
from streamflow.runtime.stats import Stats

LIVE_SECONDS = 0.5
LOG_SECONDS = 10.0
ABORT_SECONDS = 2.0
CLOSE_SECONDS = 5.0
"""How long closing may take once `shutdown_timeout` has passed."""

logger = logging.getLogger("streamflow")


@dataclass(slots=True)
class Outcome:
    """How a run in the foreground goes, and ends.

    Attributes:
        shutdown_timeout: Seconds that it may take to finish after the first signal.
        run: The run, once it is open.
        failure: Why it failed, if it did.
        signal_number: The first signal that stopped it, if one did.
        scope: Cancels opening the graph.
    """

    shutdown_timeout: float
    run: Run | None = None
    failure: StreamflowError | None = None
    signal_number: int | None = None
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)

    @property
    def exit_code(self) -> int:
        """The exit code that says so."""
        if self.signal_number is not None:
            return exit_codes.SIGNAL + self.signal_number
        if isinstance(self.failure, GraphError):
            return exit_codes.BAD_CONFIGURATION
        return exit_codes.FAILED if self.failure else 0


def run(
    file: GraphFile,
    *,
    overrides: Overrides = (),
    reset: Annotated[
        bool, Parameter(negative=(), help="Begin anew; earlier checkpoints are put aside.")
    ] = False,
    checkpoint: Annotated[
        str | None,
        Parameter(name="--from", help="Go on from this checkpoint; newer ones are put aside."),
    ] = None,
    instance: Annotated[
        str,
        Parameter(
            env_var="STREAMFLOW_INSTANCE",
            help="Name of this run among several of the graph: {instance} in the checkpoint path.",
        ),
    ] = "0",
    as_json: Json = False,
) -> int:
    """Run a graph until its streams end, or a signal drains it; return the exit code."""
    if reset and checkpoint:
        sys.stderr.write("expected --reset or --from, found both; leave one out\n")
        return exit_codes.USAGE
    graph = read_or_explain(file, overrides, deep=True, as_json=as_json)
    if graph is None:
        return exit_codes.BAD_CONFIGURATION
    start = Start(is_reset=reset, checkpoint=checkpoint)
    return run_graph(graph, start=start, instance=instance, as_json=as_json)[0]


def run_graph(
    graph: Graph,
    *,
    start: Start | None = None,
    instance: str = "0",
    as_json: bool = False,
    report: bool = True,
) -> tuple[int, Stats | None]:
    """Run a graph to its end in the foreground.

    Args:
        graph: The graph.
        start: Where a run with checkpoints begins.
        instance: What this run is called among those of the same graph.
        as_json: Print the report as JSON on stdout.
        report: Print the report at all.

    Returns:
        The exit code, and the run at its end; ``None`` if it did not open.
    """
    console = Console(stderr=True)
    log_to(console)
    opening = partial(graph.open, start=start, instance=instance)
    outcome = anyio.run(run_in_foreground, opening, console, graph.shutdown_timeout)
    stats = outcome.run.stats() if outcome.run else None
    if outcome.failure:
        console.print(Text(f"failed: {outcome.failure}", style="bold red"), soft_wrap=True)
    if as_json:
        failure = str(outcome.failure) if outcome.failure else None
        sys.stdout.write(json.dumps(report_data(graph.name, stats, failure)) + "\n")
    elif stats and report:
        console.print(report_tables(graph.name, stats))
    return outcome.exit_code, stats


class ConsoleHandler(logging.Handler):
    """Prints log records on a console, above its live line if it shows one."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        self._console.print(Text(self.format(record)), soft_wrap=True)


def log_to(console: Console) -> None:
    """Let the package's log appear above the live line."""
    handler = ConsoleHandler(console)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    # What drivers log goes nowhere then: nodes say what matters of it, and the rest would stand
    # in the live line.
    logging.getLogger().addHandler(logging.NullHandler())


async def run_in_foreground(
    opening: Callable[[], AbstractAsyncContextManager[Run]],
    console: Console,
    shutdown_timeout: float,
) -> Outcome:
    """Run a graph until it ends; the first signal drains it, the second aborts.

    The process ends soon after the deadline, also where a computation does not return.
    """
    outcome = Outcome(shutdown_timeout)
    async with anyio.create_task_group() as tasks:
        await tasks.start(obey_signals, outcome)
        with outcome.scope:
            try:
                async with opening() as run:
                    outcome.run = run
                    show = _show_live if console.is_terminal else _log_regularly
                    tasks.start_soon(show, run, console)
                    await run.wait()
            except StreamflowError as error:
                outcome.failure = error
        tasks.cancel_scope.cancel()
    return outcome


async def obey_signals(outcome: Outcome, *, task_status: TaskStatus[None]) -> None:
    """Stop the run at the first SIGINT or SIGTERM, abort it at the second."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async with anyio.create_task_group() as tasks:
            async for number in signals:
                if outcome.signal_number is None:
                    outcome.signal_number = number
                    logger.info("%s: finishing what is in flight", signal.Signals(number).name)
                    tasks.start_soon(_stop, outcome)
                else:
                    _abort(outcome)


async def _stop(outcome: Outcome) -> None:
    _exit_after(outcome.shutdown_timeout + CLOSE_SECONDS, outcome)
    if outcome.run is None:
        outcome.scope.cancel()
        return
    with suppress(StreamflowError):  # whoever waits for the run is told
        await outcome.run.stop()


def _abort(outcome: Outcome) -> None:
    """Abandon everything."""
    if outcome.run:
        outcome.run.abort()
    _exit_after(ABORT_SECONDS, outcome)


def _exit_after(seconds: float, outcome: Outcome) -> None:
    """End the process even if a computation, or a write to a disk, does not return till then."""

    def end() -> None:
        logger.error(
            "expected to end within %g s, found a computation or a write that does not return; "
            "what is in flight stays unacknowledged",
            seconds,
        )
        os._exit(outcome.exit_code)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


async def _show_live(run: Run, console: Console) -> None:
    line = LiveLine()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            live.update(Text(line.next(run.stats()), overflow="ellipsis", no_wrap=True))
            live.refresh()
            await anyio.sleep(LIVE_SECONDS)


async def _log_regularly(run: Run, console: Console) -> None:
    line = LiveLine()
    while True:
        await anyio.sleep(LOG_SECONDS)
        logger.info("%s", line.next(run.stats()))

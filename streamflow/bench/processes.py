"""The processes in which ways are measured, as their asker sees them."""

from __future__ import annotations

import multiprocessing
import signal
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Self

from streamflow.bench.clock import Round
from streamflow.bench.contestants import WayJob
from streamflow.bench.worker import WayError, serve

_END_SECONDS = 5.0


def fork_server() -> BaseContext:
    """Return what starts processes: from one that has imported torch, which takes long.

    Where there is no such thing they import it themselves.
    """
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    context.set_forkserver_preload(["__main__", "streamflow.bench.worker"])
    return context


class WayProcess:
    """The process of one way; a context manager that ends it.

    Args:
        context: Starts it.
        job: The way.
        folder: Holds a file of what it prints.
    """

    def __init__(self, context: BaseContext, job: WayJob, folder: Path) -> None:
        self._log = folder / f"{job.way.name}.log"
        self._connection, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(  # type: ignore[attr-defined]
            target=serve, args=(theirs, job, self._log), daemon=True
        )
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Let the process end by itself, or end it."""
        self._connection.close()
        self._process.terminate()
        self._process.join(_END_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()

    def settle(self, count: int | None, *, seconds: float) -> int:
        """Build the way and learn until all is ready; return the samples that a call has.

        Raises:
            WayError: It cannot be measured.
        """
        found: int = self._ask(count, seconds)
        return found

    def measure(self, count: int, *, seconds: float) -> Round:
        """Measure a round with so many samples a call.

        Raises:
            WayError: It cannot be measured.
        """
        found: Round = self._ask(count, seconds)
        return found

    def _ask(self, count: int | None, seconds: float) -> Any:
        try:
            self._connection.send((count, seconds))
            answer = self._connection.recv()
        except (EOFError, OSError):
            raise WayError(self._end()) from None
        if isinstance(answer, WayError):
            raise answer
        return answer

    def _end(self) -> str:
        """Return how the process has ended, with the last that it printed."""
        self._process.join(_END_SECONDS)
        code = self._process.exitcode
        by = f"by {signal.Signals(-code).name}" if code and code < 0 else f"with code {code}"
        printed = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(printed) if line.strip()), "")
        return f"its process ended {by}" + (f": {last}" if last else "")

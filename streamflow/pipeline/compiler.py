"""Compiled code of a recording: found on disk, or made by a process of its own.

Compiling keeps an interpreter busy for seconds, which would slow the stream down in the same
process. What was compiled stays on disk under a digest of all that it depends on.
"""

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from streamflow.pipeline import inductor
from streamflow.pipeline.recording import Recording
from streamflow.pipeline.unrolling import LIBRARY, Request, spec_of

FORMAT = 4
"""Counts changes of this package that make older code useless."""

_PROGRAM = "from streamflow.pipeline.unrolling import main; main()"


class Compiler:
    """Makes the code of one recording, one size after another, in another process.

    Attributes:
        failure: Why some size cannot be had, once that is known.
    """

    def __init__(self, recording: Recording, num_threads: int) -> None:
        specs = [spec_of(tensor) for tensor in recording.arguments]
        self._request = Request(recording.graph, recording.layout, specs, {}, num_threads)
        self._digest = _digest(self._request)
        self._wanted: list[int] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self.failure = ""

    def __repr__(self) -> str:
        return f"<Compiler of {self._digest}: {self.state}>"

    @property
    def state(self) -> str:
        """Say in a word what happens."""
        if self.failure:
            return "failed"
        return "compiling" if self.is_busy else "idle"

    @property
    def is_busy(self) -> bool:
        """Whether a process is at work."""
        return self._thread is not None and self._thread.is_alive()

    def find(self, size: int) -> Path | None:
        """Return the code of calls of ``size`` samples, where it is on disk."""
        path = self._folder(size) / LIBRARY
        return path if path.exists() else None

    def start(self, sizes: Sequence[int], *, is_urgent: bool) -> None:
        """Begin to make the code of some sizes, in this order; nothing may be under way.

        Where it is not urgent, everything else on the machine goes first.
        """
        assert not self.is_busy
        request = Request(
            self._request.graph,
            self._request.layout,
            self._request.specs,
            {size: self._folder(size) for size in sizes},
            self._request.num_threads,
            is_urgent,
        )
        try:
            self._process = _process()
        except OSError as error:
            self.failure = f"no process for the compiler: {error}"
            return
        self._thread = threading.Thread(
            target=self._watch,
            args=(self._process, pickle.dumps(request)),
            name="streamflow compiler",
            daemon=True,
        )
        self._thread.start()

    def wait(self) -> None:
        """Wait until everything that was begun is made or has failed."""
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        """End what is under way."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)  # with the compilers that it started
        self.wait()

    def _folder(self, size: int) -> Path:
        return inductor.cache_folder() / f"{self._digest}-{size}"

    def _watch(self, process: subprocess.Popen[bytes], request: bytes) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(len(request).to_bytes(8, "big") + request)
            process.stdin.flush()
            self._read(process.stdout)
        except OSError as error:
            self.failure = self.failure or f"the compiler ended: {error}"
        with process:
            process.stdin.close()
        if process.returncode:
            self.failure = self.failure or f"the compiler ended with code {process.returncode}"

    def _read(self, answers: IO[bytes]) -> None:
        for line in answers:
            try:
                failure = json.loads(line)["failure"]
            except (ValueError, TypeError, KeyError):  # something else that was printed
                continue
            self.failure = self.failure or failure


def _process() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",  # no pool, which would outlive the process
        },
        start_new_session=True,
    )


def _digest(request: Request) -> str:
    parts = (
        FORMAT,
        inductor.target(),
        sys.version,
        request.num_threads,
        request.layout,
        request.specs,
        request.graph.code,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]

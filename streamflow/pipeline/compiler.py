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
from dataclasses import replace
from typing import IO

from streamflow.pipeline import inductor, native
from streamflow.pipeline.compilation import SINGLE, Request, spec_of
from streamflow.pipeline.recording import Recording
from streamflow.pipeline.routines import Routine, Single

FORMAT = 5
"""Counts changes of this package that make older code useless."""

_PROGRAM = "from streamflow.pipeline.compilation import main; main()"


class Compiler:
    """Makes the code of one recording in another process.

    Attributes:
        failure: Why it cannot be had, once that is known.
    """

    def __init__(self, recording: Recording, num_threads: int) -> None:
        specs = [spec_of(tensor) for tensor in recording.arguments]
        folder = inductor.cache_folder()
        request = Request(recording.graph, recording.layout, specs, folder, num_threads)
        self._digest = _digest(request)
        self._request = replace(request, folder=folder / self._digest)
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

    def find(self) -> Routine | None:
        """Return the code, where it is on disk."""
        folder = self._request.folder
        if (folder / native.LIBRARY).exists():
            return native.Native(folder / native.LIBRARY)
        if (folder / SINGLE).exists():
            return Single(inductor.load(folder / SINGLE), self._request.layout)
        return None

    def start(self, *, is_urgent: bool) -> None:
        """Begin to make the code; nothing may be under way.

        Where it is not urgent, everything else on the machine goes first.
        """
        assert not self.is_busy
        request = replace(self._request, is_urgent=is_urgent)
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
        """Wait until what was begun is made or has failed."""
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        """End what is under way."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)  # with the compilers that it started
        self.wait()

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

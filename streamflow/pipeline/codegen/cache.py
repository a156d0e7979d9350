"""Compiled code of recordings: found on disk, or made by a process of its own.

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
from dataclasses import replace
from pathlib import Path
from typing import IO

from streamflow.pipeline import torch_private
from streamflow.pipeline.capture.recording import Recording
from streamflow.pipeline.codegen import libraries
from streamflow.pipeline.codegen.building import Job, ProgramSpec, Request

FORMAT = 11
"""Counts changes of this package that make older code useless."""

OWN_KERNELS = "own kernels"
"""The fast code, in which loops and updates are fused."""

LIBRARY_CALLS = "library calls"
"""Code of networks that call libraries: products of matrices, convolutions."""

_PROGRAM = "from streamflow.pipeline.codegen.building import main; main()"


class Compiler:
    """Makes the code of the stages of a pipeline in another process.

    Attributes:
        failure: Why it cannot be had, once that is known.
        code: ``OWN_KERNELS`` or ``LIBRARY_CALLS``, once it is found.
        reason: Why some of it calls libraries, if it does.
    """

    def __init__(self, recordings: Sequence[Recording], num_threads: int) -> None:
        self._requests = [_request(recording, num_threads) for recording in recordings]
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self.failure = self.code = self.reason = ""

    def __repr__(self) -> str:
        names = ", ".join(request.folder.name for request in self._requests)
        return f"<Compiler of {names}: {self.failure or ('busy' if self.is_busy else 'idle')}>"

    @property
    def is_busy(self) -> bool:
        """Whether a process is at work."""
        return self._thread is not None and self._thread.is_alive()

    def find(self) -> list[Path] | None:
        """Return where the code of each stage is on disk, or nothing while some is missing."""
        found = [_find(request) for request in self._requests]
        paths = [path for path in found if path is not None]
        if len(paths) < len(found) or libraries.find(libraries.LINE) is None:
            return None
        self._note(paths)
        return paths

    def _note(self, paths: Sequence[Path]) -> None:
        """Take note of what was found; warn of what is slower than it should be."""
        is_own = all(path.name == libraries.STAGE for path in paths)
        self.code = OWN_KERNELS if is_own else LIBRARY_CALLS
        notes = [json.loads((path.parent / libraries.NOTE).read_text()) for path in paths]
        self.reason = next((note["reason"] for note in notes if note["reason"]), "")
        faults = {p.parent: n["fault"] for p, n in zip(paths, notes, strict=True) if n["fault"]}
        if faults:
            torch_private.warn(
                f"networks learn by {self.code}, slower than they should: "
                f"{next(iter(faults.values()))}; to compile them again, with another version of "
                f"torch or a compiler that works, remove {', '.join(map(str, faults))}"
            )

    def start(self, *, is_urgent: bool) -> None:
        """Begin to make the code; nothing may be under way.

        Where it is not urgent, everything else on the machine goes first.
        """
        assert not self.is_busy
        missing = {r.folder: r for r in self._requests if _find(r) is None}
        requests = list(missing.values()) or self._requests[:1]  # what runs stages may be missing
        try:
            self._process = _process()
        except OSError as error:
            self.failure = f"no process for the compiler: {error}"
            return
        self._thread = threading.Thread(
            target=self._watch,
            args=(self._process, pickle.dumps(Job(requests, is_urgent))),
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

    def _watch(self, process: subprocess.Popen[bytes], job: bytes) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(len(job).to_bytes(8, "big") + job)
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
        [sys.executable, "-P", "-c", _PROGRAM],  # whatever lies in the current folder
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",  # no pool, which would outlive the process
        },
        start_new_session=True,
    )


def _request(recording: Recording, num_threads: int) -> Request:
    folder = libraries.cache_folder()
    request = Request([ProgramSpec.of(p) for p in recording.programs], folder, num_threads)
    return replace(request, folder=folder / _digest(request))


def _find(request: Request) -> Path | None:
    stage, learn = (request.folder / name for name in (libraries.STAGE, libraries.NAMES[0]))
    if stage.exists():
        return stage
    return learn if learn.exists() and libraries.find(libraries.LIBRARY) is not None else None


def _digest(request: Request) -> str:
    parts = (
        FORMAT,
        libraries.target(),
        sys.version,
        request.num_threads,
        *((program.layout, program.specs, program.steps) for program in request.programs),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]

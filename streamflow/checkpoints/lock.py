"""One run per folder: a lock that the system releases with its process, however that ends."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from streamflow.checkpoints.disk import explained
from streamflow.errors import CheckpointError

NAME = ".lock"


class Lock:
    """The lock on a folder, held by this process.

    A write to a disk that does not answer cannot be ended, only abandoned with its thread. So the
    lock goes away with whoever uses it last.
    """

    def __init__(self, folder: Path, descriptor: int) -> None:
        self._folder = folder
        self._descriptor = descriptor
        self._users = 0
        self._counting = threading.Lock()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Keep the folder locked for the block, also where the others leave meanwhile."""
        with self._counting:
            self._users += 1
        try:
            yield
        finally:
            with self._counting:
                self._users -= 1
                is_last = not self._users
            if is_last:
                os.close(self._descriptor)

    def check(self) -> None:
        """Check that the folder is still the one that was locked.

        Raises:
            CheckpointError: It was removed or replaced, so that another run may write there.
        """
        held = os.fstat(self._descriptor)
        try:
            found = (self._folder / NAME).stat()
        except OSError:
            found = None
        if found is None or (found.st_dev, found.st_ino) != (held.st_dev, held.st_ino):
            message = (
                f"{self._folder}: expected the folder that this run has locked, found "
                f"{'none' if found is None else 'another one'}; leave it alone while a graph runs"
            )
            raise CheckpointError(message)


@contextmanager
def locked(folder: Path) -> Iterator[Lock]:
    """Hold the lock on a folder.

    Raises:
        CheckpointError: Another run holds it, or it cannot be locked here.
    """
    flags = os.O_RDWR | os.O_CREAT
    with explained(folder, "a folder that can be locked"):
        descriptor = os.open(folder / NAME, flags, 0o644)
    try:
        with explained(folder, "a folder that can be locked"):
            _acquire(folder, descriptor)
            os.truncate(descriptor, 0)
            os.write(descriptor, _this_process().encode())
    except BaseException:
        os.close(descriptor)
        raise
    lock = Lock(folder, descriptor)
    with lock.used():
        yield lock


def _acquire(folder: Path, descriptor: int) -> None:
    try:
        import fcntl
    except ImportError as error:
        message = (
            f"{folder}: expected a system that locks files (the module fcntl), found none; "
            f"run graphs with checkpoints on Linux or macOS"
        )
        raise CheckpointError(message) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 500, 0).decode(errors="replace") or "another process"
        message = (
            f"{folder}: expected no other run with these checkpoints, found {holder}; "
            f"stop it, or give this run a path of its own"
        )
        raise CheckpointError(message) from error


def _this_process() -> str:
    since = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
    return f"process {os.getpid()} on {socket.gethostname()} since {since}"

"""A file that grows while it is read, and how it is known again under another name.

A file is known by its inode and its first bytes, since either alone may come again: a file system
gives the inode of a removed file to the next one, and many files begin alike. What has been read
last is compared, too, before more is read: a file that was emptied and written anew may have grown
beyond the place where reading stood.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from streamflow.codecs.formats import Format
from streamflow.contracts import Context, Fetch
from streamflow.records import Batch, Partition, Place
from streamflow_connectors.files.reading.opened import CHUNK_BYTES, OpenFile
from streamflow_connectors.files.stamp import Stamp

FINISHED: Final = 0
"""Stands in a checkpoint for the position of a file that is gone and has been read to its end."""

_HEAD_BYTES: Final = 1024
_TAIL_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What a file is known by.

    Attributes:
        inode: Its number in the file system.
        size_bytes: How many bytes of its beginning are known.
        digest: Checksum of these.
    """

    inode: int
    size_bytes: int
    digest: str

    def __str__(self) -> str:
        return f"{self.inode:x}-{self.size_bytes:x}-{self.digest}"

    @classmethod
    def parse(cls, text: str) -> FileIdentity:
        """Return what a position holds."""
        inode, size_bytes, digest = text.split("-")
        return cls(int(inode, 16), int(size_bytes, 16), digest)

    def begins(self, path: Path) -> bool:
        """Say whether a file begins with the bytes that are known."""
        with suppress(OSError), path.open("rb") as file:
            return _digest(file.read(self.size_bytes)) == self.digest
        return False


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


class FollowedFile(OpenFile):
    """A file whose end is not the end of what will stand in it.

    Args:
        path: As found.
        declared: The format.
        context: Of the node.
        start: The first row to return.
        stamp: What gives records their time, if anything does.
        place: What an earlier run has called it.

    Attributes:
        path: Where it is now, as far as is known.
        key: Device and inode.
        is_gone: Whether it is at none of the places any more that are looked at.
        is_dry: Whether all that is there has been read.
        is_replaced: Whether what has been read does not stand in it any more.
        has_caught_up: Whether it has been dry since it was seen at this path.
        is_paused: Whether it is closed, until `read` is called again.
        last: When something was read.
    """

    def __init__(
        self,
        path: str,
        declared: Format,
        context: Context,
        *,
        start: int = 1,
        stamp: Stamp | None = None,
        place: Place | None = None,
    ) -> None:
        super().__init__(path, declared, context, start=start, stamp=stamp)
        self.path = path
        self.key = key_of(os.fstat(self._descriptor))
        self.is_gone = self.is_replaced = self.has_caught_up = False
        self.last = 0.0
        self._place = place
        self._is_over = False
        self.is_paused = False
        self._head = b""
        self._tail = b""

    def __repr__(self) -> str:
        return f"<FollowedFile {self.path}: {self._size_bytes} bytes read, row {self._next}>"

    @cached_property
    def partition(self) -> Partition:
        """What its records are positions of; known as soon as there is a record."""
        identity = FileIdentity(self.key[1], len(self._head), _digest(self._head))
        place = self._place or (("path", self._path), ("file", str(identity)))
        return Partition(self._context.name, place, "line")

    @property
    def num_read(self) -> int:
        """How many rows have been returned or left out."""
        return self._next - 1

    @property
    def num_known(self) -> int:
        """How many rows have been read by this run or an earlier one."""
        return max(self._next, self._start) - 1

    @property
    def is_dry(self) -> bool:
        """Whether everything that is there has been read and returned."""
        return self._is_dry and not self._payloads

    @property
    def is_short(self) -> bool:
        """Whether it has fewer rows than an earlier run has read of it."""
        return self._is_dry and self._next < self._start

    def read(self) -> Fetch | None:
        """Return the next records; see `OpenFile.read`."""
        self._is_dry = False
        if self.is_paused:
            self._open_again()
        fetch = super().read()
        self.has_caught_up = self.has_caught_up or self.is_dry
        return fetch

    def changed(self) -> int:
        """Return when it was changed last, in nanoseconds."""
        return os.fstat(self._descriptor).st_mtime_ns

    def end(self) -> None:
        """Take its end for the end of what will stand in it; a last record need not be ended."""
        self._is_over = True

    def finished(self) -> Fetch:
        """Return word that there is nothing more to read in it."""
        return Fetch(Batch([], [], []), {self.partition: FINISHED})

    def is_worth_reading(self, size_bytes: int | None) -> bool:
        """Say whether there may be more than was read; ``size_bytes`` is its size, if known."""
        return not self.is_paused or (size_bytes is not None and size_bytes != self._size_bytes)

    def close(self) -> None:
        """Close it; once more does nothing."""
        if not self.is_paused:
            super().close()
            self.is_paused = True

    def is_copied_to(self, path: Path) -> bool:
        """Say whether a file holds all that was read of this one."""
        with _opened(path) as descriptor:
            return descriptor is not None and self._is_within(descriptor)

    def go_on_in(self, path: str) -> None:
        """Read the rest from a copy.

        Raises:
            OSError: It cannot be opened.
        """
        descriptor = os.open(self._context.folder / path, os.O_RDONLY)
        self.close()
        self._descriptor, self.is_paused = descriptor, False
        self.path, self.key = path, key_of(os.fstat(descriptor))
        self.is_replaced = self.has_caught_up = False

    def _open_again(self) -> None:
        """Open it at the path where it was seen last, unless another one is there by now."""
        with suppress(OSError):
            self._descriptor = os.open(self._context.folder / self.path, os.O_RDONLY)
            self.is_paused = False
            if key_of(os.fstat(self._descriptor)) == self.key:
                return
            self.close()
        self.is_replaced = self._is_dry = True

    def _read_data(self) -> bytes:
        if self.is_replaced or not self._is_within(self._descriptor):
            self.is_replaced = self._is_dry = True
            return b""
        data = os.pread(self._descriptor, CHUNK_BYTES, self._size_bytes)
        self._size_bytes += len(data)
        self._head += data[: _HEAD_BYTES - len(self._head)]
        self._tail = (self._tail + data)[-_TAIL_BYTES:]
        self._has_all = not data and self._is_over
        self._is_dry = not data and not self._is_over
        return data

    def _is_within(self, descriptor: int) -> bool:
        """Say whether what was read stands in an open file, where it stood."""
        size, tail = self._size_bytes, self._tail
        return (
            os.fstat(descriptor).st_size >= size
            and os.pread(descriptor, len(self._head), 0) == self._head
            and os.pread(descriptor, len(tail), size - len(tail)) == tail
        )


def key_of(status: os.stat_result) -> tuple[int, int]:
    """Return what tells an open file from all others."""
    return status.st_dev, status.st_ino


@contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    """Open a file that may be gone or unreadable by now."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        yield None
        return
    try:
        yield descriptor if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    finally:
        os.close(descriptor)

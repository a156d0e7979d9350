"""Making files and folders last: synced before they get their name, with a checksum."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from streamflow.errors import CheckpointError

CURES = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room in the quota",
    errno.EFBIG: "allow larger files",
    errno.EACCES: "allow this user to write there",
    errno.EPERM: "allow this user to write there",
    errno.EROFS: "choose a folder that can be written",
    errno.EEXIST: "choose a path that is a folder, or none yet",
    errno.ENOTDIR: "choose a path that is a folder, or none yet",
    errno.ENOENT: "leave the folder alone while a graph runs",
}
"""What to do about an error of the system."""


@dataclass(frozen=True, slots=True)
class Sum:
    """What a file must be like to be whole."""

    size_bytes: int
    sha256: str


@contextmanager
def explained(path: Path, expected: str) -> Iterator[None]:
    """Turn what disks and files raise into our error, which says what was ``expected``.

    Raises:
        CheckpointError: The body raised an error of the system, or of safetensors.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (OSError, SafetensorError) as error:
        code = error.errno if isinstance(error, OSError) else None
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        cure = CURES.get(code or 0, "check the disk")
        message = f"{path}: expected {expected}, found: {reason[0].lower()}{reason[1:]}; {cure}"
        raise CheckpointError(message) from error


def make_folder(path: Path) -> None:
    """Make a folder and those above it, for good."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        sync_folder(folder.parent)


def sync_folder(path: Path) -> None:
    """Wait until the names within a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, data: bytes) -> None:
    """Write a file, and wait until it is on the disk."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_file(path: Path) -> Sum:
    """Wait until a file is on the disk; return its size and checksum."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return checksum(path)


def checksum(path: Path) -> Sum:
    """Return a file's size and checksum."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return Sum(file.tell(), digest.hexdigest())

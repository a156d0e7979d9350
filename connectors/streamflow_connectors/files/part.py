"""One file of a sink that writes several."""

from __future__ import annotations

import os
from pathlib import Path

from streamflow.checkpoints.disk import make_folder
from streamflow_connectors.files.packing import packing_of


class Part:
    """A file that grows; closed and opened again, it goes on where it was.

    Args:
        path: Where it lies.
        name: What says how it is packed.
        is_new: Whether what may be there is to go.
    """

    def __init__(self, path: Path, name: str, *, is_new: bool) -> None:
        make_folder(path.parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | (os.O_TRUNC if is_new else 0)
        self._descriptor = os.open(path, flags, 0o666)
        packing = packing_of(name)
        self._packer = packing.packer(is_new=is_new) if packing else None

    def write(self, data: bytes) -> None:
        """Write, packed if the file is."""
        self._write(data if self._packer is None else self._packer.pack(data))

    def flush(self) -> None:
        """Let everything so far be in the file."""
        if self._packer is not None:
            self._write(self._packer.flush())

    def end_member(self) -> int:
        """Let the file be whole up to here, and return its length in bytes."""
        if self._packer is not None:
            self._write(self._packer.end_member())
        return os.fstat(self._descriptor).st_size

    def sync(self) -> None:
        """Put the file on disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

"""Files of records that follow one another, of a sink that writes several."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from streamflow.codecs.formats import Format
from streamflow.contracts import Context, Encoded
from streamflow.records import Batch
from streamflow_connectors.files.headers import csv_codec, has_header, read_header
from streamflow_connectors.files.packing import packing_of
from streamflow_connectors.files.writing.encoding import FileEncoder
from streamflow_connectors.files.writing.ends import mend


class Lines:
    """Records that follow one another, as in json lines, csv and msgpack.

    Attributes:
        goes_on: Whether a file that was whole and closed can be written on.

    Args:
        declared: The format.
        context: Of the node.
        name: What says how files are packed.
        fields: The columns of csv files that are continued.
    """

    goes_on: ClassVar[bool] = True

    def __init__(
        self, declared: Format, context: Context, name: str, fields: list[str] | None
    ) -> None:
        self._format = declared
        self._context = context
        self._name = name
        self._encoder = FileEncoder(declared, fields)
        self._end_bytes = len(declared.terminator)

    @property
    def fields(self) -> list[str] | None:
        """The columns of csv files."""
        return self._encoder.fields

    def encode(self, batch: Batch) -> Encoded:
        """Return the bytes of each record."""
        return self._encoder.encode(batch)

    def runs(self, payloads: list[bytes]) -> Iterator[list[bytes]]:
        """Yield all at once."""
        yield payloads

    def size_of(self, payload: bytes) -> int:
        """Return its length, with what ends it."""
        return len(payload) + self._end_bytes

    def opened(self, path: Path, payloads: list[bytes], *, is_new: bool) -> LinePart:
        """Open a file."""
        return LinePart(path, self, self._name, is_new=is_new)

    def content(self, payloads: list[bytes], *, is_first: bool) -> bytes:
        """Return what stands in a file for payloads, after the row that names its columns."""
        header = self._encoder.header if is_first else b""
        return header + self._format.terminator.join([*payloads, b""])

    def mend(self, path: Path) -> bool:
        """Let a file end between two records; say whether there is anything in it.

        Raises:
            ConnectorError: That would cut off bytes that no checkpoint knows of.
            OSError: It cannot be read or written.
            ValueError: It is of another format, or of other columns than the files before.
        """
        mend(path, self._format, self._context)
        if has_header(self._format) and (header := read_header(path, self._format)) is not None:
            self._check(path, list(csv_codec(self._format, header).fields))
        return path.stat().st_size > 0

    def _check(self, path: Path, fields: list[str]) -> None:
        if self.fields is None:
            self._encoder = FileEncoder(self._format, fields)
        elif fields != self.fields:
            message = f"the columns {', '.join(fields)} in {path.name} of {path.parent.name}, and "
            message += f"{', '.join(self.fields)} in another file"
            raise ValueError(message)


class LinePart:
    """A file of lines; closed and opened again, it goes on where it was.

    Args:
        path: Where it lies.
        lines: What makes its content.
        name: What says how it is packed.
        is_new: Whether what may be there is to go.
    """

    def __init__(self, path: Path, lines: Lines, name: str, *, is_new: bool) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | (os.O_TRUNC if is_new else 0)
        self._descriptor = os.open(path, flags, 0o666)
        self._lines = lines
        packing = packing_of(name)
        self._packer = packing.packer(is_new=is_new) if packing else None

    def takes(self, payloads: list[bytes]) -> bool:
        """Say yes."""
        return True

    def write(self, payloads: list[bytes], *, is_first: bool) -> None:
        """Write payloads, packed if the file is."""
        data = self._lines.content(payloads, is_first=is_first)
        self._write(data if self._packer is None else self._packer.pack(data))

    def flush(self) -> None:
        """Let everything so far be in the file."""
        if self._packer is not None:
            self._write(self._packer.flush())

    def end(self) -> int:
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

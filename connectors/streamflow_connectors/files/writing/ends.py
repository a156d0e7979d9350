"""Where a file that is there already is to go on: at its mark, or after what a crash left.

A writer that is killed may leave half a record at the end, or half a member of packed data. A
checkpoint's mark says where that begins, and all from there on is cut off. Without a mark nobody
can tell half a record from a whole one that nothing ends: it is kept, and ended where it stands, so
that the next record is one of its own. Only half a msgpack value has no end that could be put to
it, nor has half the header of a csv file: those are cut off.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from streamflow.codecs.formats import CsvFormat, Format
from streamflow.codecs.framing import LineSplitter, Splitter
from streamflow.contracts import Context
from streamflow.errors import ConnectorError
from streamflow_connectors.files.headers import has_header
from streamflow_connectors.files.packing import Packing, UnpackedFile, packing_of

logger = logging.getLogger("streamflow.file")

_CHUNK_BYTES: Final = 2**16


def mark_of(path: str, context: Context) -> Mapping[str, Any] | None:
    """Return the mark of a sink that writes to ``path``; None if there is none."""
    mark = context.resume.mark if context.resume else None
    return mark if mark and mark["path"] == path else None


def other_files(context: Context) -> ConnectorError:
    """Return what to raise when a checkpoint is of a sink that called its files otherwise."""
    message = (
        f"{context.name}: expected rotate, partition_by and atomic as in the checkpoint, found "
        f"others, so that it cannot be told where to go on; undo the change, or give another path"
    )
    return ConnectorError(message)


def cut_back(path: Path, mark: Mapping[str, Any], context: Context) -> None:
    """Cut the file at ``path`` back to its mark, safely on disk.

    Raises:
        ConnectorError: It is not there, or shorter than its mark.
        OSError: It cannot be cut.
    """
    size = path.stat().st_size if path.is_file() else None
    if size is None and not mark["bytes"]:
        return
    if size is None or size < mark["bytes"]:
        found = "no file" if size is None else size
        message = (
            f"{context.name}: expected at least {mark['bytes']} bytes in {mark['path']} as the "
            f"checkpoint says, found {found}; restore the file, or use --reset to begin anew"
        )
        raise ConnectorError(message)
    with path.open("rb+") as file:
        file.truncate(mark["bytes"])
        os.fsync(file.fileno())
    if size > mark["bytes"]:
        cut = size - mark["bytes"]
        logger.info("%s: cut %d bytes off %s, back to the checkpoint", context.name, cut, path.name)


def mend(path: Path, declared: Format, context: Context) -> None:
    """Let the file at ``path`` end between two records, if there is one.

    Raises:
        ConnectorError: That would cut off bytes that no checkpoint knows of.
        OSError: It cannot be read or written.
        ValueError: It holds something else than records of this format, or is damaged.
    """
    if not path.is_file() or not path.stat().st_size:
        return
    tail = _read_tail(path, declared)
    # Of a header alone nobody can tell whether it names all columns.
    is_torn_header = has_header(declared) and len(tail.rest) == tail.size_bytes
    ending = _ending(declared, tail.rest) if tail.rest and not is_torn_header else b""
    num_cut = len(tail.rest) if tail.rest and not ending else 0
    if num_cut and context.is_checkpointed:
        message = (
            f"{context.name}: expected whole records in {path.name} to append to, found one cut "
            f"off in its last {num_cut} bytes; remove those, or the file"
        )
        raise ConnectorError(message)
    if tail.packing and (tail.is_cut_off or num_cut):
        _pack_anew(path, tail.packing, tail.size_bytes - num_cut, ending)
    elif num_cut:
        os.truncate(path, tail.size_bytes - num_cut)
    elif ending:
        with path.open("ab") as file:
            file.write(_packed(ending, tail.packing) if tail.packing else ending)
    if num_cut:
        logger.warning(
            "%s: cut %d bytes off %s, a record that a crash cut short",
            context.name,
            num_cut,
            path.name,
        )
    elif tail.rest or tail.is_cut_off:
        logger.warning(
            "%s: %s ended without the end of a record, as after a crash; put it there",
            context.name,
            path.name,
        )


@dataclass(frozen=True, slots=True)
class _Tail:
    """How a file ends.

    Attributes:
        size_bytes: Length of the content, unpacked.
        rest: What follows the last record that is ended.
        packing: How it is packed, if it is.
        is_cut_off: Whether it ends amid a member.
    """

    size_bytes: int
    rest: bytes
    packing: Packing | None
    is_cut_off: bool


def _read_tail(path: Path, declared: Format) -> _Tail:
    splitter = declared.splitter()
    if packing := packing_of(path):
        content = UnpackedFile(path, packing)
        size = _feed(splitter, content)
        return _Tail(size, splitter.rest, packing, is_cut_off=content.is_cut_off)
    size = path.stat().st_size
    with path.open("rb") as file:
        if isinstance(splitter, LineSplitter):  # whether a line is ended shows at its end
            file.seek(max(0, size - _CHUNK_BYTES))
        _feed(splitter, iter(lambda: file.read(_CHUNK_BYTES), b""))
    return _Tail(size, splitter.rest, None, is_cut_off=False)


def _feed(splitter: Splitter, content: Iterable[bytes]) -> int:
    """Return how many bytes there are."""
    size = 0
    for data in content:
        size += len(data)
        splitter.split(data)
    return size


def _ending(declared: Format, rest: bytes) -> bytes:
    """Return what ends a record that begins with ``rest``; empty if nothing does."""
    end = declared.terminator
    if not isinstance(declared, CsvFormat):
        return end
    splitter = declared.splitter()
    splitter.split(rest + end)
    return declared.quotechar.encode() + end if splitter.rest else end


def _pack_anew(path: Path, packing: Packing, size_bytes: int, ending: bytes) -> None:
    """Write a file's first ``size_bytes`` of content and ``ending`` in its place, at once."""
    path = path.resolve()  # a link stays one
    anew = path.with_name(f"{path.name}.mended")
    packer = packing.packer(is_new=True)
    with anew.open("wb") as file:
        for data in UnpackedFile(path, packing):
            file.write(packer.pack(data[:size_bytes]))
            size_bytes -= len(data[:size_bytes])
        file.write(packer.pack(ending) + packer.end_member())
        file.flush()
        os.fsync(file.fileno())
    shutil.copymode(path, anew)
    anew.replace(path)


def _packed(data: bytes, packing: Packing) -> bytes:
    packer = packing.packer(is_new=True)
    return packer.pack(data) + packer.end_member()

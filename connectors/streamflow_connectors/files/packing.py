"""Packed data as they come and go, in bounded memory: gzip and Zstandard, by the file's suffix.

Packed data are members (gzip) or frames (Zstandard), one after the other; here both are members.
Zstandard is in the standard library from Python 3.14 on, and before comes from a package that is
the same code.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path, PurePath
from typing import Final, Protocol

UNFINISHED: Final = ".part"
"""What the name of a file ends in that is not to be taken for a whole one."""

_PIECE_BYTES: Final = 2**16
_GZIP: Final = 31
"""What tells zlib to read and write the header and the checksum of gzip."""

_ZSTD: Final = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"


class _PackedMember(Protocol):
    """A member that is being unpacked."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _GrowingMember(Protocol):
    """A member that is being packed."""

    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self, mode: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Packing:
    """A way to pack data.

    Attributes:
        begin_packed: Begins to unpack a member.
        begin_growing: Begins to pack one.
        to_flush: Mode of a flush after which everything so far can be unpacked.
        to_end: Mode of a flush that ends the member.
        padding: What may stand between two members.
    """

    begin_packed: Callable[[], _PackedMember] = field(repr=False)
    begin_growing: Callable[[], _GrowingMember] = field(repr=False)
    to_flush: int
    to_end: int
    padding: bytes = b""

    def unpacker(self) -> Unpacker:
        """Return what unpacks."""
        return Unpacker(self)

    def packer(self, *, is_new: bool) -> Packer:
        """Return what packs; see `Packer`."""
        return Packer(self, is_new=is_new)


def requires(path: str) -> dict[str, str]:
    """Return what to install for a file, by the module that shows whether it is there."""
    return {_ZSTD: "streamflow-online[zstd]"} if path.endswith(".zst") else {}


def packing_of(path: str | PurePath) -> Packing | None:
    """Return how a file is packed, as its suffix says; None if it is not."""
    make = _PACKINGS.get(PurePath(str(path).removesuffix(UNFINISHED)).suffix)
    return make() if make else None


def without_packing(path: str) -> str:
    """Return a path without the suffix that says how it is packed."""
    suffix = PurePath(path).suffix
    return path.removesuffix(suffix) if suffix in _PACKINGS else path


def _gzip() -> Packing:
    def begin_growing() -> _GrowingMember:
        return zlib.compressobj(wbits=_GZIP)

    return Packing(_Inflating, begin_growing, zlib.Z_SYNC_FLUSH, zlib.Z_FINISH, b"\0")


def _zstd() -> Packing:
    module = import_module(_ZSTD)
    # A frame without a checksum hides damage.
    options = {module.CompressionParameter.checksum_flag: 1}
    growing = module.ZstdCompressor

    def begin_growing() -> _GrowingMember:
        made: _GrowingMember = growing(options=options)
        return made

    return Packing(module.ZstdDecompressor, begin_growing, growing.FLUSH_BLOCK, growing.FLUSH_FRAME)


_PACKINGS: Final[Mapping[str, Callable[[], Packing]]] = {".gz": _gzip, ".zst": _zstd}


class _Inflating:
    """A gzip member, unpacked by zlib, with the surface that Zstandard's has."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=_GZIP)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._member.eof

    @property
    def unused_data(self) -> bytes:
        return self._member.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        tail = self._member.unconsumed_tail
        piece = self._member.decompress(tail + data, max_length)
        # A full piece may have left some of what it was made of within the member.
        self.needs_input = not self._member.unconsumed_tail and len(piece) < max_length
        return piece


class Unpacker:
    """Unpacks data, a bounded piece at a time, however much they unfold to."""

    def __init__(self, packing: Packing) -> None:
        self._packing = packing
        self._member: _PackedMember | None = None
        self._packed = b""
        self._has_more = False

    @property
    def has_more(self) -> bool:
        """Whether `take` has something to do before more is fed."""
        return self._has_more

    def feed(self, data: bytes) -> None:
        """Take packed data; no data is the end.

        Raises:
            ValueError: The end is amid a member.
        """
        if not data and self._member is not None:
            message = "that the packed data is cut off"
            raise ValueError(message)
        self._packed += data
        self._has_more = self._has_more or bool(self._packed)

    def take(self) -> bytes:
        """Return the next piece; it may be empty.

        Raises:
            ValueError: The data is damaged.
        """
        if self._member is None:
            self._packed = self._packed.lstrip(self._packing.padding)
            self._has_more = bool(self._packed)
            if not self._has_more:
                return b""
            self._member = self._packing.begin_packed()
        data, self._packed = self._packed, b""
        try:
            piece = self._member.decompress(data, _PIECE_BYTES)
        except Exception as error:  # each library raises one of its own
            raise ValueError(str(error)) from error
        self._has_more = not self._member.needs_input
        if self._member.eof:
            self._packed, self._member = self._member.unused_data, None
            self._has_more = bool(self._packed)
        return piece


class UnpackedFile:
    """Yields a file's content, up to where it is cut off if it is.

    Attributes:
        is_cut_off: Whether it ended amid a member.
    """

    def __init__(self, path: Path, packing: Packing) -> None:
        self._path = path
        self._packing = packing
        self.is_cut_off = False

    def __iter__(self) -> Iterator[bytes]:
        unpacker = self._packing.unpacker()
        with self._path.open("rb") as file:
            while True:
                data = file.read(_PIECE_BYTES)
                try:
                    unpacker.feed(data)
                except ValueError:
                    self.is_cut_off = True
                    return
                if not data:
                    return
                while unpacker.has_more:
                    yield unpacker.take()


class Packer:
    """Packs data into members, each begun when there is something to hold.

    Args:
        packing: The way.
        is_new: Whether nothing stands before, where even no data make a member.
    """

    def __init__(self, packing: Packing, *, is_new: bool) -> None:
        self._packing = packing
        self._member = packing.begin_growing() if is_new else None

    def pack(self, data: bytes) -> bytes:
        """Return what is ready of the packed form."""
        if not data:
            return b""
        if self._member is None:
            self._member = self._packing.begin_growing()
        return self._member.compress(data)

    def flush(self) -> bytes:
        """Return what is missing so that everything so far can be unpacked."""
        return b"" if self._member is None else self._member.flush(self._packing.to_flush)

    def end_member(self) -> bytes:
        """Return what is missing so that everything so far is whole members."""
        member, self._member = self._member, None
        return b"" if member is None else member.flush(self._packing.to_end)

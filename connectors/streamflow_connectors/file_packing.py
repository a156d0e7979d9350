"""Gzip data as they come and go: of one member or of several, in bounded memory."""

from __future__ import annotations

import zlib
from typing import Final

_GZIP: Final = 31
"""What tells zlib to read and write the header and the checksum of gzip."""

_PIECE_BYTES: Final = 2**16


class Gunzip:
    """Unpacks gzip data, a bounded piece at a time, however much they unfold to."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=_GZIP)
        self._packed = b""
        self._is_within = False
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
        if not data and self._is_within:
            message = "that the gzip data is cut off"
            raise ValueError(message)
        self._packed += data
        self._has_more = bool(self._packed)

    def take(self) -> bytes:
        """Return the next piece; it may be empty.

        Raises:
            zlib.error: The data is damaged.
        """
        if not self._is_within:
            self._packed = self._packed.lstrip(b"\0")  # padding between members
            self._has_more = self._is_within = bool(self._packed)
            if not self._has_more:
                return b""
            self._member = zlib.decompressobj(wbits=_GZIP)
        piece = self._member.decompress(self._packed, _PIECE_BYTES)
        self._is_within = not self._member.eof
        self._packed = self._member.unconsumed_tail or self._member.unused_data
        # A full piece may have left some of what it was made of within the member.
        self._has_more = bool(self._packed) or (self._is_within and len(piece) == _PIECE_BYTES)
        return piece


class Gzip:
    """Packs data into gzip members, each begun when there is something to hold.

    Args:
        is_new: Whether nothing stands before, where even no data make a member.
    """

    def __init__(self, *, is_new: bool) -> None:
        self._member = zlib.compressobj(wbits=_GZIP) if is_new else None

    def pack(self, data: bytes) -> bytes:
        """Return what is ready of the packed form."""
        if not data:
            return b""
        if self._member is None:
            self._member = zlib.compressobj(wbits=_GZIP)
        return self._member.compress(data)

    def flush(self) -> bytes:
        """Return what is missing so that everything so far can be unpacked."""
        return b"" if self._member is None else self._member.flush(zlib.Z_SYNC_FLUSH)

    def end_member(self) -> bytes:
        """Return what is missing so that everything so far is whole members."""
        member, self._member = self._member, None
        return b"" if member is None else member.flush(zlib.Z_FINISH)

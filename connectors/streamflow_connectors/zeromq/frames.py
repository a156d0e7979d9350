"""What a message holds: frames as a ZeroMQ sink writes them, and those of other senders.

    push   [header, value]           pub   [topic, header, value]
    other  [value]                         [value] or [topic, value]

The header is a msgpack list of `VERSION`, the sender's id, the record's number, its key, its time
in milliseconds and its headers as pairs of text and bytes. A sender's numbers count from 0; id and
number are nil where records are not numbered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgpack  # type: ignore[import-untyped]  # it ships no types

from streamflow.records import Headers
from streamflow_connectors.network.reading import Item

VERSION: Final = 1

FRAME_HEADER: Final = "zeromq.frame"
"""Name of the headers that keep the other frames of a message which could not be used."""

_PLAIN: Final = frozenset({type(None), str, bytes, int, float, bool})
_MOST_ID_BYTES: Final = 32


def header_packer() -> Callable[[bytes | None, int, Any, int | None, Headers], bytes]:
    """Return what makes the header frame of a record, of sender, number, key, time and headers.

    It raises ValueError where msgpack does not hold them.
    """
    packer = msgpack.Packer()

    def pack(
        sender: bytes | None, number: int, key: Any, timestamp_ms: int | None, headers: Headers
    ) -> bytes:
        if type(key) not in _PLAIN:
            key = str(key)
        numbered = None if sender is None else number
        try:
            packed: bytes = packer.pack((VERSION, sender, numbered, key, timestamp_ms, headers))
        except (ValueError, OverflowError) as error:
            message = f"expected a key, time and headers that msgpack holds, found {error}"
            raise ValueError(message) from error
        return packed

    return pack


def read_message(frames: Sequence[bytes], *, has_topic: bool) -> Item:
    """Return the record that ``frames`` hold.

    Args:
        frames: Of one message, at least one.
        has_topic: Whether the first of several is a topic.
    """
    payload = frames[-1]
    most = 3 if has_topic else 2
    if len(frames) == 1:
        return Item(payload)
    if len(frames) > most:
        return _unusable(frames, f"expected {most} frames or fewer, found {len(frames)}")
    if len(frames) < most:
        return Item(payload, _text(frames[0]))
    try:
        sender, number, key, timestamp_ms, headers = _unpack_header(frames[-2])
    except Exception as error:  # it is a stranger's, and msgpack raises what it likes
        return _unusable(
            frames, f"expected the header of a zeromq sink before the value, found {error}"
        )
    return Item(payload, key, timestamp_ms, headers, sender=sender, number=number or 0)


def _unusable(frames: Sequence[bytes], cause: str) -> Item:
    """Return a message that keeps all its frames."""
    others = tuple((FRAME_HEADER, frame) for frame in frames[:-1])
    return Item(frames[-1], headers=others, cause=cause)


def _unpack_header(frame: bytes) -> tuple[bytes | None, int | None, Any, int | None, Headers]:
    """Return sender, number, key, time and headers.

    Raises:
        Exception: It is no header.
    """
    found = msgpack.unpackb(frame, use_list=False)
    if type(found) is not tuple or len(found) != 6 or found[0] != VERSION:
        message = "something else"
        raise ValueError(message)
    _, sender, number, key, timestamp_ms, headers = found
    if not (
        _is_numbered(sender, number)
        and type(key) in _PLAIN
        and (timestamp_ms is None or (type(timestamp_ms) is int and abs(timestamp_ms) < 2**63))
        and _are_headers(headers)
    ):
        message = "fields of other types"
        raise ValueError(message)
    return sender, number, key, timestamp_ms, headers


def _is_numbered(sender: object, number: object) -> bool:
    if sender is None:
        return number is None
    return (
        type(sender) is bytes
        and 0 < len(sender) <= _MOST_ID_BYTES
        and type(number) is int
        and number >= 0
    )


def _are_headers(headers: object) -> bool:
    return type(headers) is tuple and all(
        type(pair) is tuple and [type(part) for part in pair] == [str, bytes] for pair in headers
    )


def _text(frame: bytes) -> str | bytes:
    try:
        return frame.decode()
    except UnicodeDecodeError:
        return frame

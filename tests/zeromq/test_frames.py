from __future__ import annotations

from typing import Any

import msgpack  # type: ignore[import-untyped]
import pytest

from streamflow_connectors.zeromq.frames import header_packer, read_message
from streamflow_connectors.zeromq.gaps import MOST_SENDERS, Senders

GOOD: list[Any] = [1, b"id", 5, "key", 12, [["name", b"value"]]]


def test_a_header_is_read_as_it_was_packed() -> None:
    header = header_packer()(b"id", 5, "key", 12, (("name", b"value"),))
    assert msgpack.unpackb(header) == GOOD
    message = read_message([header, b"v"], has_topic=False)
    assert (message.sender, message.number, message.key) == (b"id", 5, "key")
    assert (message.timestamp_ms, message.headers) == (12, (("name", b"value"),))
    assert (message.payload, message.cause) == (b"v", None)


@pytest.mark.parametrize(
    ("place", "found"),
    [
        (0, 2),
        (0, None),
        (1, "id"),
        (1, b""),
        (1, b"x" * 33),
        (1, None),
        (2, -1),
        (2, 1.5),
        (2, None),
        (3, []),
        (3, {}),
        (4, 1.5),
        (4, True),
        (4, 2**63),
        (5, None),
        (5, [["name"]]),
        (5, [[b"name", b"value"]]),
        (5, [["name", "value"]]),
    ],
)
def test_a_header_with_another_field_is_none(place: int, found: Any) -> None:
    fields = [*GOOD[:place], found, *GOOD[place + 1 :]]
    message = read_message([msgpack.packb(fields), b"v"], has_topic=False)
    assert message.cause is not None
    assert message.cause.startswith("expected the header of a zeromq sink before the value")


@pytest.mark.parametrize("frame", [b"", b"\xc1", b"\x05", msgpack.packb(GOOD) + b"\x00"])
def test_bytes_that_are_no_header_are_told(frame: bytes) -> None:
    assert read_message([frame, b"v"], has_topic=False).cause is not None


def test_no_more_senders_are_remembered_than_so_many() -> None:
    senders = Senders("in")
    for index in range(MOST_SENDERS + 1):
        senders.take(b"%d" % index, 0)
    senders.take(b"1", 2)
    assert senders.lost == 1
    senders.take(b"0", 9)  # forgotten, so that it begins anew
    assert senders.lost == 1
    assert repr(senders) == f"<Senders {MOST_SENDERS}: 1 lost, 0 repeated>"

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamflow_connectors.http.event_stream import EventParser, ServerEvent

LIMIT = 1000
# The examples of the standard, and what it says of each.
STREAM = (
    b": a comment\n\n"
    b"data: YHOO\r\ndata: +2\r\ndata: 10\r\n\r\n"
    b"event: add\rdata: 73857293\r\rdata\n\ndata\ndata\n\n"
    b"data:test\n\ndata:  two\n\n"
    b"id: 1\ndata: first event\nunknown: x\n\nid\ndata:second event\n\n"
    b"event: nothing\n\nid: 7\n\nretry: 2500\nretry: x\ndata: last\n\ndata: cut"
)
EVENTS = [
    ServerEvent(b"YHOO\n+2\n10", "message", ""),
    ServerEvent(b"73857293", "add", ""),
    ServerEvent(b"", "message", ""),
    ServerEvent(b"\n", "message", ""),
    ServerEvent(b"test", "message", ""),
    ServerEvent(b" two", "message", ""),
    ServerEvent(b"first event", "message", "1"),
    ServerEvent(b"second event", "message", ""),
    ServerEvent(b"last", "message", "7"),
]


@given(st.lists(st.integers(0, len(STREAM)), max_size=9), st.booleans())
def test_events_are_the_same_however_the_bytes_come(cuts: list[int], has_mark: bool) -> None:
    stream = (b"\xef\xbb\xbf" if has_mark else b"") + STREAM
    parser = EventParser("", LIMIT)
    events: list[ServerEvent] = []
    bounds = [0, *sorted(cuts), len(stream)]
    for start, end in itertools.pairwise(bounds):
        events += parser.feed(stream[start:end])
    assert events == EVENTS
    assert parser.retry == 2.5


def test_the_last_id_is_that_of_the_connection_before() -> None:
    assert EventParser("5", LIMIT).feed(b"data: x\n\n") == [ServerEvent(b"x", "message", "5")]
    assert EventParser("5", LIMIT).feed(b"id: \0\ndata: x\n\n") == [
        ServerEvent(b"x", "message", "5")
    ]


@pytest.mark.parametrize(
    "stream", [b"data: " + b"x" * LIMIT, b"data: 12345678\n" * 200, b": " + b"x" * LIMIT]
)
def test_an_event_without_end_is_not_gathered(stream: bytes) -> None:
    parser = EventParser("", LIMIT)
    assert parser.feed(stream) == []
    assert parser.is_overfull
    assert parser.feed(b"\n\ndata: 1\n\n") == []
    several = EventParser("", LIMIT)
    assert len(several.feed(b"data: 12345678\n\n" * 200)) == 200
    assert not several.is_overfull

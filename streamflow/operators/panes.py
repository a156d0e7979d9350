"""The windows of a key, and which of them a record belongs to.

Theory of operation. A window of a key is given when the key's watermark has reached its end. The
watermark is the time of the key's newest record less ``delay``; with ``ttl`` it is at least the
time of the newest record of all keys less ``ttl``, so that the windows of a key that went silent
end, too. With ``size: 10s``, ``delay: 2s`` and ``lateness: 5s``, for the records of one key:

    time        1    9   11    8   12            3              17   4
    watermark  -1    7    9    9   10           10              15  15
                                   [0, 10) is   [0, 10) is           late: dropped
                                   given        given again          or rejected

Nothing but the records and their order decides, so results are the same however they are cut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from streamflow.nodes.units import milliseconds
from streamflow.operators.aggregates import Aggregate
from streamflow.operators.watermarks import Clocked
from streamflow.operators.window_options import WindowOptions
from streamflow.records import Partition


@dataclass(slots=True)
class Pane:
    """A window of a key.

    Attributes:
        start_ms: Its first millisecond.
        end_ms: The first one after it.
        number: Grows with each window, to tell which of those that end at once began first.
        aggregates: What is computed.
        origin: Partition, position and key of the last record in it.
        revision: How often it was given.
        is_given: Whether there was no record since.
    """

    start_ms: int
    end_ms: int
    number: int
    aggregates: list[Aggregate]
    origin: tuple[Partition, int, Any]
    revision: int = 0
    is_given: bool = False


@dataclass(slots=True)
class Panes(Clocked):
    """The windows of a key, by their start."""

    panes: dict[int, Pane]


MakePane = Callable[[int, int], Pane]
"""Makes a window, given its start and end."""


class Fixed:
    """Windows of one size at regular distances."""

    def __init__(self, operator: WindowOptions) -> None:
        assert operator.size is not None
        self._size_ms = milliseconds(operator.size)
        self._every_ms = milliseconds(operator.every or operator.size)

    def panes_of(
        self, panes: dict[int, Pane], time_ms: int, horizon_ms: int, make: MakePane
    ) -> list[Pane]:
        """Return the windows that take a record, those that were not there made.

        Args:
            panes: The windows of its key.
            time_ms: Its time.
            horizon_ms: Windows that end here or before take no more records.
            make: Makes a window.
        """
        last = time_ms - time_ms % self._every_ms
        first = max(time_ms - self._size_ms, horizon_ms - self._size_ms)
        found = []
        for start in range(last, first, -self._every_ms):
            if start not in panes:
                panes[start] = make(start, start + self._size_ms)
            found.append(panes[start])
        return found


class Sessions:
    """Windows that go on as long as records follow within a gap."""

    def __init__(self, operator: WindowOptions) -> None:
        assert operator.gap is not None
        self._gap_ms = milliseconds(operator.gap)

    def panes_of(
        self, panes: dict[int, Pane], time_ms: int, horizon_ms: int, make: MakePane
    ) -> list[Pane]:
        """Return the session that takes a record, if any; arguments as of `Fixed`."""
        end_ms = time_ms + self._gap_ms
        met = [pane for pane in panes.values() if pane.start_ms < end_ms and time_ms < pane.end_ms]
        if not met:
            if end_ms <= horizon_ms:
                return []
            session = panes[time_ms] = make(time_ms, end_ms)
            return [session]
        session, *others = sorted(met, key=lambda pane: pane.start_ms)
        for pane in (session, *others):
            del panes[pane.start_ms]
        for other in others:
            _absorb(session, other)
        session.start_ms = min(session.start_ms, time_ms)
        session.end_ms = max(session.end_ms, end_ms)
        panes[session.start_ms] = session
        return [session]


def _absorb(session: Pane, other: Pane) -> None:
    """Let a session take in the next one."""
    for aggregate, part in zip(session.aggregates, other.aggregates, strict=True):
        aggregate.absorb(part)
    session.end_ms = other.end_ms
    session.revision = max(session.revision, other.revision)

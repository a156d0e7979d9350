"""Windows over time: the declaration, and which windows a record belongs to.

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

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from streamflow.contracts import Context
from streamflow.nodes.units import DurationField, SpanField, milliseconds
from streamflow.operators.aggregates import Aggregate, AggregateField
from streamflow.operators.keys import KeyedOperator
from streamflow.records import Partition

if TYPE_CHECKING:
    from streamflow.operators.window_step import WindowStep

MOST_WINDOWS = 1000
"""Sliding windows that a record may be in."""


class Window(KeyedOperator):
    """Turns the records of each key into one record for each window of time.

    With ``size`` windows follow each other (tumbling), with ``every``, too, they overlap (sliding);
    they begin at multiples of ``every`` since 1970 and do not contain their end. With ``gap`` a
    window is a session: records that follow each other within less than that.

    A window is given when a record of its key comes whose time is ``delay`` after its end, or,
    with ``ttl``, any record whose time is that much after its end, and at the end of the stream.
    It is a record with the fields of ``by``, ``start_ms`` and ``end_ms``, those of ``fields``, and
    with ``lateness`` how often the window was given before as ``revision``. Its time is the end of
    the window; it has the key and position of the last record in it.

    A record for which a field cannot be computed is rejected. Windows of keys beyond ``max_keys``
    are given at once, as they are. The report counts late records as left out.
    """

    keeps_scalars: ClassVar[bool] = True
    keeps_order: ClassVar[bool] = False
    needs_time: ClassVar[bool] = True

    type: Literal["window"] = "window"
    fields: dict[str, AggregateField] = Field(
        description="What to compute, by the name of the field: count(), the sum, mean, min, max "
        "or std (of the population) of an expression, as in mean(price), or quantile(price, 0.9)."
    )
    size: SpanField | None = Field(None, description="How long a window is, such as 1m.")
    every: SpanField | None = Field(
        None, description="How long after the last one the next window begins; without it the size."
    )
    gap: SpanField | None = Field(
        None, description="How long there is no record between two sessions."
    )
    delay: DurationField = Field(
        0.0, description="How much older than the newest record of its key a record may come."
    )
    lateness: DurationField = Field(
        0.0,
        description="For how long after that a window still takes records, and is given again for "
        "each.",
    )
    late: Literal["drop", "reject"] = Field(
        "drop", description="What happens to records that are later: they are dropped or rejected."
    )
    max_values: int = Field(
        10_000,
        ge=1,
        description="Values of a window from which a quantile is computed; of more, a random "
        "sample of so many is.",
    )

    @model_validator(mode="after")
    def _check_window(self) -> Window:
        for problem in self._window_problems():
            raise ValueError(problem)
        return self

    def _window_problems(self) -> Iterator[str]:
        if not self.fields:
            yield "expected names and aggregates in fields, found none; write {n: count()}"
        if (self.size is None) == (self.gap is None):
            found = "neither" if self.size is None else "both"
            yield f"expected size or gap, found {found}; write one of them"
        if self.every is not None and self.size is None:
            yield "expected size beside every, found gap; sessions begin with a record"
        size, every = self.size, self.every
        if size is not None and every is not None and not size / MOST_WINDOWS <= every <= size:
            yield (
                f"expected every to be at most the size, and at least a {MOST_WINDOWS}th of it, "
                f"found {every:g} and a size of {size:g} seconds"
            )
        if self.ttl is not None and self.ttl < self.delay:
            yield f"expected a ttl of at least delay, {self.delay:g} seconds, found {self.ttl:g}"
        taken = {"start_ms", "end_ms", "revision", *(self.by or ())} & self.fields.keys()
        if taken:
            yield f"expected fields with names of their own, found {', '.join(sorted(taken))}"

    @property
    def holds(self) -> bool:
        """Whether records wait: for their window to end."""
        return True

    def open(self, context: Context) -> AbstractContextManager[WindowStep]:
        """Give a processor without windows."""
        from streamflow.operators.window_step import WindowStep

        return nullcontext(WindowStep(self))


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
class Panes:
    """The windows of a key.

    Attributes:
        newest_ms: Time of its newest record.
        look_ms: When they must be looked at, whether or not there are more records of the key.
        panes: The windows by their start.
    """

    newest_ms: int
    look_ms: int
    panes: dict[int, Pane]


MakePane = Callable[[int, int], Pane]
"""Makes a window, given its start and end."""


class Fixed:
    """Windows of one size at regular distances."""

    def __init__(self, operator: Window) -> None:
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

    def __init__(self, operator: Window) -> None:
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

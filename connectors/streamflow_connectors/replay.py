"""Replay: giving the records of a recorded stream when they would come from a live one."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Annotated, Final, TypeAlias

import anyio
import anyio.lowlevel
from pydantic import AfterValidator, WithJsonSchema

from streamflow.contracts import Fetch, Reader
from streamflow.errors import ConnectorError
from streamflow.records import Partition

AS_FAST_AS_POSSIBLE: Final = "as_fast_as_possible"
RECORDED: Final = "recorded"

_RATE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) per second")


def _check(pace: str) -> str:
    if pace not in (RECORDED, AS_FAST_AS_POSSIBLE) and not rate_of(pace):
        message = (
            f"expected {RECORDED}, {AS_FAST_AS_POSSIBLE} or a rate such as 100 per second, found "
            f"{pace}; write one of these"
        )
        raise ValueError(message)
    return pace


def rate_of(pace: str) -> float | None:
    """Return the records per second that a pace names, if it does."""
    match = _RATE.fullmatch(pace)
    return float(match[1]) if match else None


PaceField: TypeAlias = Annotated[
    str,
    AfterValidator(_check),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": [RECORDED, AS_FAST_AS_POSSIBLE]},
                {"type": "string", "pattern": _RATE.pattern},
            ]
        }
    ),
]
"""A field that says when records come."""


class PacedReader:
    """Gives the records of another reader when it is time.

    The first record comes at once, and every other one as long after it as the pace says. Where the
    graph is slower, those whose time has come wait, and then come together, as those of a live
    stream do; none is left out. A record that was rejected comes with the one before it.

    Args:
        reader: Of the recorded stream.
        pace: As the field says, but `AS_FAST_AS_POSSIBLE`.
        name: Of the source.
    """

    def __init__(self, reader: Reader, pace: str, name: str) -> None:
        self._reader = reader
        self._rate = rate_of(pace)
        self._name = name
        self._rest: Fetch | None = None
        self._times: Sequence[float] = ()
        self._began: float | None = None
        self._first_ms: int | None = None
        self._last = 0.0
        self._count = 0

    def __repr__(self) -> str:
        pace = RECORDED if self._rate is None else f"{self._rate:g} per second"
        return f"<PacedReader {self._name}: {pace}, {self._count} records>"

    async def receive(self) -> Fetch:
        """Wait until it is time for a record, and return all whose time has come.

        Raises:
            anyio.EndOfStream: There are no more.
            ConnectorError: The first record has no time to go by.
        """
        await anyio.lowlevel.checkpoint()
        if self._rest is None:
            fetch = await self._reader.receive()
            self._times = self._due(fetch)
            self._rest = fetch
        if self._began is None:
            self._began = anyio.current_time()
        if self._times:
            await anyio.sleep_until(self._began + self._times[0])
        return self._take(anyio.current_time() - self._began)

    async def commit(self, positions: Mapping[Partition, int]) -> None:
        """Store positions as the other reader does."""
        await self._reader.commit(positions)

    def behind(self) -> int | None:
        """Return what the other reader does."""
        return self._reader.behind()

    def _take(self, now: float) -> Fetch:
        """Take the records whose time has come, at least one."""
        fetch = self._rest
        assert fetch is not None
        count = max(bisect_right(self._times, now), min(1, len(self._times)))
        self._count += count
        if count == len(self._times):
            self._rest, self._times = None, ()
            return fetch
        head, self._rest = fetch.cut(count)
        self._times = self._times[count:]
        return head

    def _due(self, fetch: Fetch) -> list[float]:
        """Return for each record, rejected ones too, how long after the first one it comes."""
        if self._rate is not None:
            start = self._count
            return [(start + index) / self._rate for index in range(fetch.num_records)]
        good = iter(fetch.batch.timestamps_ms or [None] * len(fetch.batch))
        bad = set(fetch.rejected.indices) if fetch.rejected else set()
        return [
            self._recorded(None if index in bad else next(good), is_rejected=index in bad)
            for index in range(fetch.num_records)
        ]

    def _recorded(self, timestamp_ms: int | None, *, is_rejected: bool) -> float:
        """Return how long after the first one a record comes, never before the one before it."""
        if timestamp_ms is None:
            if self._first_ms is None and not is_rejected:
                message = (
                    f"{self._name}: expected records with a time, to give them as recorded, found "
                    f"the first one without; give them one, or choose another pace"
                )
                raise ConnectorError(message)
            return self._last
        if self._first_ms is None:
            self._first_ms = timestamp_ms
        self._last = max(self._last, (timestamp_ms - self._first_ms) / 1000)
        return self._last

"""Acks: the word, travelling back, that records and all that became of them are finished.

Theory of operation. What one `Reader.receive` brings is tracked as one unit in the source's
`Ledger`, with the position at which each of its partitions goes on. The unit starts with one share.
Where a batch goes two ways its shares are split, where batches are merged the result carries the
shares of all, and whoever is the last to handle a batch finishes its shares. When a unit has no
share left it is done; positions advance only over units that are done without a gap:

    units of partition 0     [ends 10 done] [ends 25 done] [ends 31, 2 shares] [ends 40 done]
    finished position                              25

Records that an operator holds (a window, a horizon) count as finished: what keeps them over a crash
is the checkpoint, not the position.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

import anyio

from streamflow.records import Partition


class _Unit:
    """Records received together, and how many shares of them are still out."""

    __slots__ = ("ends", "ledger", "shares")

    def __init__(self, ledger: Ledger, ends: Mapping[Partition, int]) -> None:
        self.ledger = ledger
        self.ends = ends
        self.shares = 1


class Share:
    """Part in the outcome of some source records; split or finished exactly once."""

    __slots__ = ("_unit",)

    def __init__(self, unit: _Unit) -> None:
        self._unit: _Unit | None = unit

    def split(self, parts: int) -> list[Share]:
        """Give up this share for ``parts`` (at least one) new ones."""
        unit = self._release()
        unit.shares += parts
        return [Share(unit) for _ in range(parts)]

    def finish(self) -> None:
        """Say that this part is delivered, rejected, held or left out."""
        unit = self._release()
        if unit.shares == 0:
            unit.ledger._advance(unit.ends)

    def _release(self) -> _Unit:
        unit, self._unit = self._unit, None
        assert unit is not None, "a share is split or finished once"
        unit.shares -= 1
        return unit


class Ledger:
    """What one source has received and how far, per partition, it is finished without a gap."""

    def __init__(self) -> None:
        self._open: dict[Partition, deque[_Unit]] = {}
        self._finished: dict[Partition, int] = {}
        self._units = 0
        self._changed = anyio.Event()

    def __repr__(self) -> str:
        return f"<Ledger {self._units} units in flight over {len(self._open)} partitions>"

    @property
    def is_idle(self) -> bool:
        """Whether everything received is finished."""
        return self._units == 0

    def track(self, ends: Mapping[Partition, int]) -> Share:
        """Take note of records just received and return the share of their whole outcome."""
        unit = _Unit(self, ends)
        self._units += 1
        for partition in ends:
            self._open.setdefault(partition, deque()).append(unit)
        return Share(unit)

    def take(self) -> dict[Partition, int]:
        """Return the finished positions that have advanced since the last call."""
        positions, self._finished = self._finished, {}
        return positions

    async def settled(self) -> None:
        """Wait until everything received is finished."""
        while not self.is_idle:
            await self._changed.wait()

    def _advance(self, partitions: Iterable[Partition]) -> None:
        """Move each partition's finished position past its leading units that are done."""
        self._units -= 1
        for partition in partitions:
            units = self._open[partition]
            while units and units[0].shares == 0:
                self._finished[partition] = units.popleft().ends[partition]
            if not units:
                del self._open[partition]
        self._changed.set()
        self._changed = anyio.Event()

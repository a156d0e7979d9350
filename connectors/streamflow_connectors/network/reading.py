"""What readers of systems that send by themselves share: items, numbered as they come."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import repeat
from operator import eq
from typing import Any, Final, NamedTuple, TypeVar

import anyio
import anyio.lowlevel

from streamflow.codecs.conversion import decode
from streamflow.contracts import Codec, Context, Fetch
from streamflow.records import Batch, Headers, Partition, split_rejected

T = TypeVar("T")

RECORD_BYTES: Final = 200
"""What a record takes in memory beside its payload, about."""


class Item(NamedTuple):
    """What the system has sent: a record, still in bytes.

    Attributes:
        cause: Why it cannot be used, if so.
        partition: Where it stands, if the system tells.
        offset: Likewise, within the partition.
        sender: Id of a sender that numbers its records.
        number: The record's number, if there is a sender.
    """

    payload: bytes
    key: Any = None
    timestamp_ms: int | None = None
    headers: Headers = ()
    cause: str | None = None
    partition: Partition | None = None
    offset: int = 0
    sender: bytes | None = None
    number: int = 0


class ItemReader:
    """Receives items as they come, until none comes any more; see `streamflow.contracts.Reader`.

    Args:
        context: What the node is told.
        codec: Decodes the payloads.
        end_after: Seconds without a record after which the stream ends.
    """

    def __init__(self, context: Context, codec: Codec, end_after: float | None) -> None:
        self._partition = Partition(context.name)
        self._codec = codec
        self._end_after = end_after or math.inf
        self._next = 0
        self._silent_since: float | None = None
        self._has_ended = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._partition}: {self._next} received>"

    async def receive(self) -> Fetch:
        """Wait for records and return those at hand.

        Raises:
            anyio.EndOfStream: None came for as long as ``end_after`` says.
            ConnectorError: The system refused, or was away for too long.
        """
        # Nothing is awaited once an item is taken, so cancelling loses none.
        await anyio.lowlevel.checkpoint()
        if self._silent_since is None:
            self._silent_since = anyio.current_time()
        is_late = False
        while not self._has_ended:
            if items := self._take():
                self._silent_since = None
                return self._fetch(items)
            if is_late:
                self._has_ended = True
                break
            with anyio.CancelScope(deadline=self._silent_since + self._end_after) as scope:
                await self._wait()
            is_late = scope.cancelled_caught
        raise anyio.EndOfStream

    async def commit(self, positions: Mapping[Partition, int]) -> None:
        """Do nothing: the system keeps no positions."""

    def behind(self) -> int | None:
        """Return ``None``: the system does not tell how much waits."""
        return None

    def _take(self) -> Sequence[Item]:
        """Take items that are there, as many as make a batch."""
        raise NotImplementedError

    async def _wait(self) -> None:
        """Wait until there may be an item."""
        raise NotImplementedError

    def _fetch(self, items: Sequence[Item]) -> Fetch:
        start, self._next = self._next, self._next + len(items)
        return decoded(
            items,
            self._codec,
            [self._partition] * len(items),
            range(start, self._next),
            {self._partition: self._next},
        )


def decoded(
    items: Sequence[Item],
    codec: Codec,
    partitions: Sequence[Partition],
    offsets: Sequence[int],
    ends: Mapping[Partition, int],
) -> Fetch:
    """Return items as what a reader received."""
    payloads = [item.payload for item in items]
    batch = Batch(
        payloads,
        partitions,
        offsets,
        keys=if_any([item.key for item in items], None),
        timestamps_ms=if_any([item.timestamp_ms for item in items], None),
        headers=if_any([item.headers for item in items], ()),
        originals=payloads,
        size_bytes=2 * sum(map(len, payloads)) + RECORD_BYTES * len(items),
    )
    causes = {index: item.cause for index, item in enumerate(items) if item.cause is not None}
    if not causes:
        return decode(codec, batch, ends)
    usable, _ = split_rejected(batch, causes)
    found = codec.decode(usable.originals or ())
    kept, rejected = split_rejected(batch, joined_causes(len(batch), causes, found.causes))
    return Fetch(kept.with_values(found.values), ends, rejected)


def joined_causes(
    count: int, known: Mapping[int, str], later: Mapping[int, str]
) -> Mapping[int, str]:
    """Return the causes of ``count`` records; ``later`` counts among those without a known one."""
    if not later:
        return known
    left = [index for index in range(count) if index not in known]
    return {**known, **{left[index]: cause for index, cause in later.items()}}


def if_any(column: list[T], absent: object) -> list[T] | None:
    """Return a column, or ``None`` if no record has an entry in it."""
    return None if all(map(eq, column, repeat(absent))) else column

"""Dead letters: records that a node could not use, and how many of them a run bears."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from streamflow.errors import FailureBudgetError
from streamflow.records import Batch, Rejected
from streamflow.runtime.acks import Share
from streamflow.runtime.channels import Edge, Parcel

MAX_FRACTION = 0.01
MIN_RECORDS = 100
MAX_IN_A_ROW = 1000
LOGGED_PER_NODE = 20

logger = logging.getLogger("streamflow")


class FailureBudget:
    """Counts one node's records, and says when too many of them were rejected.

    The verdict depends on the order of the records alone, never on how they are batched.
    """

    def __init__(self) -> None:
        self.rejected = 0
        self._handled = 0
        self._in_a_row = 0

    def handle(self, count: int, rejected: Sequence[int] = ()) -> str | None:
        """Count ``count`` records of which those at the places ``rejected`` (rising) were rejected.

        Returns:
            What exceeds the budget, if anything does.
        """
        start = self._handled
        verdicts = []
        for place in rejected:
            verdicts += [self._accept(start + place), self._reject()]
        verdicts.append(self._accept(start + count))
        return next(filter(None, verdicts), None)

    def _accept(self, upto: int) -> str | None:
        """Count good records until ``upto`` have been handled."""
        passes_threshold = self._handled < MIN_RECORDS <= upto
        if upto > self._handled:
            self._handled = upto
            self._in_a_row = 0
        return self._too_many(MIN_RECORDS) if passes_threshold else None

    def _reject(self) -> str | None:
        self._handled += 1
        self._in_a_row += 1
        self.rejected += 1
        if self._in_a_row >= MAX_IN_A_ROW:
            return f"{self._in_a_row} in a row"
        return self._too_many(self._handled)

    def _too_many(self, handled: int) -> str | None:
        if handled < MIN_RECORDS or self.rejected <= MAX_FRACTION * handled:
            return None
        return f"{self.rejected} of {handled}"


class DeadLetters:
    """Where one node's rejected records go, the dead-letter sink or the log, and their count."""

    def __init__(
        self, node: str, edge: Edge | None, on_exhausted: Callable[[FailureBudgetError], None]
    ) -> None:
        self._node = node
        self._edge = edge
        self._budget = FailureBudget()
        self._on_exhausted = on_exhausted

    @property
    def count(self) -> int:
        """How many records have been rejected."""
        return self._budget.rejected

    async def handle(self, count: int, rejected: Rejected | None, shares: Sequence[Share]) -> None:
        """Count records that the node has handled; take those it rejected, with their shares.

        Waits while the dead-letter sink has no room.
        """
        exceeded = self._budget.handle(count, rejected.indices if rejected else ())
        if rejected:
            await self._put(Parcel(rejected.batch, tuple(shares)), rejected.causes)
        if exceeded:
            message = (
                f"{self._node}: expected at most {MAX_FRACTION:.0%} rejected records and fewer "
                f"than {MAX_IN_A_ROW:,} in a row, found {exceeded}, the last because: "
                f"{rejected.causes[-1] if rejected else 'see the log'}; mend the data or the graph"
            )
            self._on_exhausted(FailureBudgetError(message))

    async def _put(self, parcel: Parcel, causes: Sequence[str]) -> None:
        if self._edge is None:
            self._log(parcel.batch, causes)
            parcel.finish()
        else:
            letters = _letters(parcel.batch, causes, self._node)
            await self._edge.send(Parcel(letters, parcel.shares))

    def _log(self, batch: Batch, causes: Sequence[str]) -> None:
        logged = self.count - len(causes)  # the count already has these
        for position, cause in zip(batch.positions(), causes, strict=True):
            if logged == LOGGED_PER_NODE:
                logger.warning("%s: further rejected records are counted, not logged", self._node)
            if logged < LOGGED_PER_NODE:
                logger.warning("%s: rejected the record at %s: %s", self._node, position, cause)
            logged += 1

    def close(self) -> None:
        """Say that the node will reject no more."""
        if self._edge is not None:
            self._edge.close()


def _letters(batch: Batch, causes: Sequence[str], node: str) -> Batch:
    """Return dead letters, one for each record; of a source without bytes they hold the value."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return batch.with_values(
        {
            "original": list(batch.originals or batch.rows()),
            "cause": list(causes),
            "node": [node] * len(batch),
            "attempts": [1] * len(batch),
            "position": batch.positions(),
            "time": [now] * len(batch),
        }
    )

"""Dead letters: records that a node could not use, and how many of them a run bears."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from streamflow.errors import FailureBudgetError
from streamflow.graph.graph import FailureBudget
from streamflow.records import Batch, Partition, Rejected
from streamflow.runtime.acks import Share
from streamflow.runtime.channels import Edge
from streamflow.runtime.parcels import Parcel

LOGGED_PER_NODE = 20

logger = logging.getLogger("streamflow")


class FailureCount:
    """Counts one node's records, and says when too many of them were rejected.

    The verdict depends on the order of the records alone, never on how they are batched.
    """

    def __init__(self, budget: FailureBudget) -> None:
        self.rejected = 0
        self._budget = budget
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
        after = self._budget.after
        passes_threshold = self._handled < after <= upto
        if upto > self._handled:
            self._handled = upto
            self._in_a_row = 0
        return self._too_many(after) if passes_threshold else None

    def _reject(self) -> str | None:
        self._handled += 1
        self._in_a_row += 1
        self.rejected += 1
        if self._in_a_row >= self._budget.in_a_row:
            return f"{self._in_a_row} in a row"
        return self._too_many(self._handled)

    def _too_many(self, handled: int) -> str | None:
        if handled < self._budget.after or self.rejected <= self._budget.fraction * handled:
            return None
        return f"{self.rejected} of {handled}"


class DeadLetters:
    """Where one node's rejected records go, the dead-letter sink or the log, and their count."""

    def __init__(
        self,
        node: str,
        edge: Edge | None,
        on_exhausted: Callable[[FailureBudgetError], None],
        budget: FailureBudget | Literal["none"],
    ) -> None:
        self._node = node
        self._edge = edge
        self._budget = None if budget == "none" else budget
        self._failures = FailureCount(self._budget or FailureBudget())
        self._on_exhausted = on_exhausted
        self._last_cause = ""

    @property
    def count(self) -> int:
        """How many records have been rejected."""
        return self._failures.rejected

    async def handle(self, count: int, rejected: Rejected | None, shares: Sequence[Share]) -> None:
        """Count records that the node has handled; take those it rejected, with their shares.

        Waits while the dead-letter sink has no room.
        """
        exceeded = self._failures.handle(count, rejected.indices if rejected else ())
        if rejected:
            await self._put(Parcel(rejected.batch, tuple(shares)), rejected.causes)
            self._last_cause = rejected.causes[-1]
        if exceeded and self._budget:
            message = (
                f"{self._node}: expected at most {100 * self._budget.fraction:g}% rejected records "
                f"and fewer than {self._budget.in_a_row:,} in a row, found {exceeded}, the last "
                f"because: {self._last_cause}; mend the data or the graph, or raise failure_budget"
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


@dataclass(frozen=True, slots=True)
class RetriedPartition(Partition):
    """Where records stood that were dead letters and are tried again.

    Attributes:
        attempts: How often they have been tried before.
    """

    attempts: int = 0


def _letters(batch: Batch, causes: Sequence[str], node: str) -> Batch:
    """Return dead letters, one for each record, with all that it takes to try it again."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    empty: Sequence[None] = [None] * len(batch)
    return batch.with_values(
        {
            "original": _originals(batch),
            "cause": list(causes),
            "node": [node] * len(batch),
            "attempts": list(map(_attempts, batch.partitions)),
            "position": batch.positions(),
            "time": [now] * len(batch),
            "source": [partition.source for partition in batch.partitions],
            "key": list(batch.keys or empty),
            "timestamp_ms": list(batch.timestamps_ms or empty),
            "headers": [list(headers or ()) for headers in batch.headers or empty],
        }
    )


def _originals(batch: Batch) -> list[Any]:
    """Return the bytes that each record was decoded from; its value where there are none."""
    if batch.originals is None:
        return list(batch.rows())
    if all(batch.originals):
        return list(batch.originals)
    # Where a stream with bytes is merged with one without, those without have empty ones.
    return [original or row for original, row in zip(batch.originals, batch.rows(), strict=True)]


def _attempts(partition: Partition) -> int:
    """Return how often a record has been tried, this time included."""
    return 1 + (partition.attempts if isinstance(partition, RetriedPartition) else 0)

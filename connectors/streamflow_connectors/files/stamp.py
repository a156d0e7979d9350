"""The time of a record, as one of its fields says."""

from __future__ import annotations

from dataclasses import dataclass, replace

from streamflow.contracts import Fetch
from streamflow.operators.times import TimeUnit, read_times
from streamflow.records import Rejected, concatenate, split_rejected


@dataclass(frozen=True, slots=True)
class Stamp:
    """Gives records their time.

    Attributes:
        field: What holds it.
        unit: Of numbers in it.
    """

    field: str
    unit: TimeUnit

    def __call__(self, fetch: Fetch) -> Fetch:
        """Return records with their time; those without a readable one are rejected."""
        causes: dict[int, str] = {}
        times = read_times(fetch.batch, self.field, self.unit, causes)
        if not causes:
            return replace(fetch, batch=replace(fetch.batch, timestamps_ms=times))
        good, timeless = split_rejected(fetch.batch, causes)
        assert timeless is not None
        stamps = [time for index, time in enumerate(times) if index not in causes]
        known = set(fetch.rejected.indices) if fetch.rejected else set()
        places = [index for index in range(fetch.num_records) if index not in known]
        late = replace(timeless, indices=[places[index] for index in timeless.indices])
        rejected = _merged(fetch.rejected, late) if fetch.rejected else late
        return replace(fetch, batch=replace(good, timestamps_ms=stamps), rejected=rejected)


def _merged(one: Rejected, other: Rejected) -> Rejected:
    """Return the records of both, in the order in which they were received."""
    indices = [*one.indices, *other.indices]
    order = sorted(range(len(indices)), key=indices.__getitem__)
    causes = [*one.causes, *other.causes]
    return Rejected(
        concatenate([one.batch, other.batch]).select(order),
        [causes[index] for index in order],
        [indices[index] for index in order],
    )

"""Batches for the tests of operators."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from streamflow.contracts import Context, Processed
from streamflow.nodes import Operator
from streamflow.records import Batch, Partition, Record, Values, to_columns
from streamflow.testing.connectors import make_batch

PARTITION = Partition("readings")


def batch_of(values: Values, start: int = 0) -> Batch:
    """Return a batch laid out as given."""
    columns = list(values.values()) if isinstance(values, dict) else [values]
    size = len(columns[0])
    return Batch(
        values,
        [PARTITION] * size,
        range(start, start + size),
        keys=[f"key {index}" for index in range(start, start + size)],
        originals=[b"original %d" % index for index in range(start, start + size)],
    )


def outputs(operator: Operator, batches: Iterable[Batch]) -> dict[str, list[Any]]:
    """Return the values that come out of each output of an operator."""
    found: dict[str, list[Any]] = {}
    with operator.open(Context("node")) as processor:
        for batch in batches:
            processed = processor.process(batch)
            if processed.batch is not None:
                assert processed.outputs is not None
                for name, value in zip(processed.outputs, processed.batch.rows(), strict=True):
                    found.setdefault(name, []).append(value)
    return found


@dataclass
class Outcome:
    """What an operator makes of records: others, causes by index, and its report.

    ``before`` is the report just before the end.
    """

    records: list[Record]
    causes: dict[int, str]
    report: Mapping[str, Any]
    before: Mapping[str, Any]

    @property
    def values(self) -> list[Any]:
        return [record.value for record in self.records]


def run(
    operator: Operator, records: Sequence[Any], cuts: Iterable[int] = (), *, in_columns: bool = True
) -> Outcome:
    """Return what an operator makes of a stream that is cut into batches at these places."""
    found: list[Record] = []
    causes: dict[int, str] = {}
    places = [0, *sorted(min(place, len(records)) for place in cuts), len(records)]
    with operator.open(Context("node")) as processor:
        for start, stop in pairwise(places):
            if start < stop:
                batch = make_batch(records[start:stop], start, in_columns=in_columns)
                processed = processor.process(batch)
                found += processed.batch.records() if processed.batch else ()
                if processed.rejected:
                    offsets = processed.rejected.batch.offsets
                    causes.update(zip(offsets, processed.rejected.causes, strict=True))
        before = processor.report()
        ended = processor.end()
        assert ended.rejected is None
        found += ended.batch.records() if ended.batch else ()
        return Outcome(found, causes, processor.report(), before)


def process(operator: Operator, batches: Iterable[Batch]) -> tuple[list[Any], dict[int, str]]:
    """Return what an operator makes of batches: values, and causes by offset."""
    rows: list[Any] = []
    causes: dict[int, str] = {}

    def keep(processed: Processed) -> None:
        if processed.batch:
            rows.extend(processed.batch.rows())
        if processed.rejected:
            offsets = processed.rejected.batch.offsets
            causes.update(zip(offsets, processed.rejected.causes, strict=True))

    with operator.open(Context("node")) as processor:
        for batch in batches:
            keep(processor.process(batch))
        keep(processor.end())
        assert processor.report() == {}
    return rows, causes


def cut(values: list[Any], cuts: Iterable[int], *, in_columns: bool) -> list[Batch]:
    """Return values as the batches between cuts, in columns where that is possible."""
    places = [0, *sorted(cuts), len(values)]
    return [
        batch_of(to_columns(part) if in_columns else part, start)
        for start, stop in pairwise(places)
        if (part := values[start:stop])
    ]

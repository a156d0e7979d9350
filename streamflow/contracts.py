"""The contract of what a declaration opens, which the runtime drives, and of what decodes for it.

    Reader.receive -> Processor.process -> ... -> Writer.write, Writer.flush
          ^                                                |
          +------------- Reader.commit <---- ack ----------+

Nobody but the runtime handles acks: a record is finished when the runtime has seen it written and
flushed, rejected to the dead letters, or left out by an operator.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from streamflow.records import Batch, Partition, Place, Rejected, Values


@dataclass(frozen=True, slots=True)
class Resume:
    """Where a node goes on, as a checkpoint says.

    Attributes:
        positions: Of a source: for each partition, by `Partition.place`, the position at which
            reading goes on. A partition that is not there is read from its beginning.
        mark: Of a sink: what `Writer.mark` returned.
        is_rewind: Whether the checkpoint wins over positions that were committed after it.
        state: Of an operator or model: what `Processor.state` returned, which the runtime gives
            to `Processor.restore`.
    """

    positions: Mapping[Place, int] = field(default_factory=dict)
    mark: Mapping[str, Any] | None = None
    is_rewind: bool = False
    state: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """What a node is told when it is opened.

    Attributes:
        name: The node's name in the graph.
        folder: Where relative paths start: the folder of the YAML file, else the current one.
        is_checkpointed: Whether the graph takes checkpoints, so that `Writer.mark` will be called.
        resume: Where to go on; None at a first start, or without checkpoints.
        sources: The declared `Source` of each name in the graph, for sinks that store positions.
    """

    name: str
    folder: Path = field(default_factory=Path)
    is_checkpointed: bool = False
    resume: Resume | None = None
    sources: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fetch:
    """What one `Reader.receive` brought.

    Attributes:
        batch: The records, decoded; may be empty.
        ends: For each partition that was read, the position at which reading goes on: what will be
            committed when all these records are finished.
        rejected: The records that could not be decoded.
        skipped: How many records were left out on purpose (tombstones).
    """

    batch: Batch
    ends: Mapping[Partition, int]
    rejected: Rejected | None = None
    skipped: int = 0

    @property
    def num_records(self) -> int:
        """Count of the records, those that could not be decoded included."""
        return len(self.batch) + (len(self.rejected.batch) if self.rejected else 0)

    def cut(self, count: int) -> tuple[Fetch, Fetch]:
        """Return the first ``count`` records, good and rejected ones, and the rest."""
        rejected = self.rejected
        num_bad = sum(index < count for index in rejected.indices) if rejected else 0
        head, tail = _cut(self.batch, count - num_bad)
        bad = (None, None) if rejected is None else _cut_rejected(rejected, num_bad, count)
        ends: dict[Partition, int] = {}
        for batch in (head, *([bad[0].batch] if bad[0] else [])):
            pairs = zip(batch.partitions, batch.offsets, strict=True)
            for partition, run in groupby(pairs, key=itemgetter(0)):
                last = max(offset for _, offset in run)
                ends[partition] = max(ends.get(partition, 0), last + 1)
        return Fetch(head, ends, bad[0], self.skipped), replace(
            self, batch=tail, rejected=bad[1], skipped=0
        )


def _cut(batch: Batch, count: int) -> tuple[Batch, Batch]:
    return batch.slice(0, count), batch.slice(count, len(batch))


def _cut_rejected(
    rejected: Rejected, num_bad: int, count: int
) -> tuple[Rejected | None, Rejected | None]:
    head, tail = _cut(rejected.batch, num_bad)
    after = [index - count for index in rejected.indices[num_bad:]]
    return (
        Rejected(head, rejected.causes[:num_bad], rejected.indices[:num_bad]) if head else None,
        Rejected(tail, rejected.causes[num_bad:], after) if tail else None,
    )


class Reader(Protocol):
    """An open source. Only one task calls it at a time, except for `commit` and `behind`."""

    async def receive(self) -> Fetch:
        """Wait for records and return all that are at hand, in order within each partition.

        Cancelling it loses nothing that a later run would not read again.

        Raises:
            anyio.EndOfStream: There will be no more.
        """
        ...

    async def commit(self, positions: Mapping[Partition, int]) -> None:
        """Store positions up to which everything is finished; those not owned any more are skipped.

        Called while `receive` waits. Sources without a place to store them do nothing.
        """
        ...

    def behind(self) -> int | None:
        """Return how many records wait beyond the last one received; ``None`` if unknown."""
        ...


@runtime_checkable
class Beginning(Protocol):
    """A reader that knows where it begins as soon as it is open.

    Where sinks store positions, what is stored runs ahead of a checkpoint. So the first checkpoint
    has to say where reading began, or a run that goes on from it would begin at what is stored.
    """

    def begins(self) -> Mapping[Partition, int]:
        """Return the position of the first record to come, by partition."""
        ...


@dataclass(frozen=True, slots=True)
class Processed:
    """What a processor made of a batch.

    Attributes:
        batch: Output records.
        rejected: Records that it could not use.
        outputs: The output that each record of ``batch`` goes to; ``None`` if there is only one.
    """

    batch: Batch | None = None
    rejected: Rejected | None = None
    outputs: Sequence[str] | None = None


class Processor(Protocol):
    """An open operator or model. Calls come one at a time, in the order of the stream."""

    def process(self, batch: Batch) -> Processed:
        """Return what becomes of ``batch``, which is never empty; a record may be left out."""
        ...

    def end(self) -> Processed:
        """Return what is still to come once the inputs have ended; called once."""
        ...

    def report(self) -> Mapping[str, Any]:
        """Return figures worth showing, as plain data; may be called from another thread."""
        ...

    def state(self) -> dict[str, Any]:
        """Return copies of all that a later run needs to go on as if it had never stopped.

        A tree of dict (with text as keys), list, tuple, str, int, float, bool, None, bytes,
        `torch.Tensor` and `numpy.ndarray`; empty where nothing is kept from record to record.
        Called between two calls of `process`. What is in flight within the processor is finished
        first, so that asking is part of the result: another processor that restores the state gives
        to the last bit what this one gives from here on.
        """
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned in an earlier run; called before the first record.

        The mapping and what it holds stay the caller's own.
        """
        ...


class Writer(Protocol):
    """An open sink."""

    async def write(self, batch: Batch) -> Rejected | None:
        """Take a batch, waiting while there is no room; return records that cannot be encoded."""
        ...

    async def flush(self) -> None:
        """Wait until everything written so far is delivered, as safely as the system promises.

        Raises:
            ConnectorError: Something was not delivered.
        """
        ...

    async def mark(self) -> Mapping[str, Any]:
        """Return what a later run needs to cut the output back to what is flushed by now.

        Plain data; empty where the sink cannot. Called after `flush`, while nothing is written.
        """
        ...


@runtime_checkable
class Publishing(Protocol):
    """A writer that shows what it has written only once a checkpoint holds it."""

    def publication(self) -> Callable[[], Awaitable[None]]:
        """Return what shows all that is finished by now.

        Asked for right after `Writer.mark`; called when the checkpoint with that mark is safe, or
        never. Records may be written meanwhile.
        """
        ...


@runtime_checkable
class Retrying(Protocol):
    """A reader or writer that tries again what fails, and says so."""

    def retrying(self) -> str | None:
        """Return what is tried again, since when and why, as text; ``None`` if all is well.

        May be asked after the event loop has ended.
        """
        ...


@runtime_checkable
class Reporting(Protocol):
    """A reader or writer that has figures of its own."""

    def report(self) -> Mapping[str, Any]:
        """Return figures worth showing, numbers by what they count, and other plain data."""
        ...


@dataclass(frozen=True, slots=True)
class Decoded:
    """Values of the payloads that could be decoded, in order, and the cause for each other one.

    Attributes:
        values: One value for each payload that is not in ``causes``.
        causes: Why a payload could not be decoded, by its index.
    """

    values: Values
    causes: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Payloads of the values that could be encoded, in order, and the cause for each other one."""

    payloads: list[bytes]
    causes: Mapping[int, str] = field(default_factory=dict)


class Codec(Protocol):
    """Decodes and encodes payloads, each one record; keeps no state between calls."""

    def decode(self, payloads: Sequence[bytes]) -> Decoded:
        """Return the values of ``payloads``; never raises for bad input."""
        ...

    def encode(self, batch: Batch) -> Encoded:
        """Return the payloads of a batch's values; never raises for a value it cannot encode."""
        ...

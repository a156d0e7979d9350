"""What a run can say about itself, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class EdgeStats:
    """One edge at one moment; what was sent was taken, was dropped, or waits.

    Attributes:
        overflow: What happens to records that it has no room for.
        sent: Records that its sender has sent.
        taken: Records that its receiver has taken.
        dropped: Records that were dropped because there was no room.
        waiting: Records in it.
    """

    overflow: str
    sent: int = 0
    taken: int = 0
    dropped: int = 0
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class NodeStats:
    """One node at one moment.

    Attributes:
        kind: ``source``, ``operator``, ``model`` or ``sink``.
        received: Records taken in.
        sent: Records passed on, or delivered by a sink.
        rejected: Records that could not be used.
        skipped: Records left out on purpose by the source (tombstones).
        waiting: Records in its inbox.
        behind: Records beyond the last one a source has received; ``None`` if unknown.
        positions: Of a source: where each partition goes on that it has let records in from, those
            of the runs before included where it goes on from a checkpoint.
        retrying: What a source or sink tries again, since when and why; ``None`` if all is well.
        report: The node's own figures: a model's score, what a source or sink counts.
        edges: What the node receives through, by the name of the sender.
    """

    kind: str
    received: int
    sent: int
    rejected: int
    skipped: int = 0
    waiting: int = 0
    behind: int | None = None
    positions: Mapping[str, int] = field(default_factory=dict)
    retrying: str | None = None
    report: Mapping[str, Any] = field(default_factory=dict)
    edges: Mapping[str, EdgeStats] = field(default_factory=dict)

    @property
    def dropped(self) -> int:
        """Records that were on their way to the node and dropped for want of room."""
        return sum(edge.dropped for edge in self.edges.values())


@dataclass(frozen=True, slots=True)
class CheckpointStats:
    """The checkpoints of a run.

    Attributes:
        taken: Count of those that are safe.
        failed: Count of those that could not be written.
        failure: Why the last one could not be written; ``None`` if it is safe.
        paused: Seconds for which everything stood still, to copy all state.
        age: Seconds since the last one was safe; ``None`` before the first.
    """

    taken: int
    failed: int
    failure: str | None = None
    paused: float = 0.0
    age: float | None = None


@dataclass(frozen=True, slots=True)
class Stats:
    """A run at one moment.

    Attributes:
        state: ``running``, ``stopping``, ``finished`` or ``failed``.
        elapsed: Seconds since the sources started.
        nodes: Each node by name.
        checkpoints: None for a graph without.
    """

    state: str
    elapsed: float
    nodes: Mapping[str, NodeStats]
    checkpoints: CheckpointStats | None = None

    @property
    def received(self) -> int:
        """Records received by all sources, those that could not be decoded included."""
        return sum(node.received for node in self.nodes.values() if node.kind == "source")

    @property
    def processed(self) -> int:
        """Records that the slowest model has taken in; without a model, those received."""
        taken = [node.received for node in self.nodes.values() if node.kind == "model"]
        return min(taken, default=self.received)

    @property
    def delivered(self) -> int:
        """Records delivered by all sinks."""
        return sum(node.sent for node in self.nodes.values() if node.kind == "sink")

    @property
    def rejected(self) -> int:
        """Records that some node could not use."""
        return sum(node.rejected for node in self.nodes.values())

    @property
    def dropped(self) -> int:
        """Records that were dropped for want of room, in all edges."""
        return sum(node.dropped for node in self.nodes.values())

    @property
    def behind(self) -> int | None:
        """Records that wait in the sources' systems; ``None`` if no source knows."""
        known = [node.behind for node in self.nodes.values() if node.behind is not None]
        return sum(known) if known else None

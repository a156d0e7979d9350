"""What a graph promises on each way from a source to a sink, and what it cannot promise.

| source | checkpoint | sink | learned | delivered |
|---|---|---|---|---|
| can be read again | yes | is cut back, or stores positions | exactly once | exactly once |
| can be read again | yes | any other | exactly once | at least once |
| keeps positions | no | stores positions | afresh in every run | exactly once |
| keeps positions | no | any other | afresh in every run | at least once |
| can be read again | no | any | afresh in every run | once in every run |
| neither | yes | any | at most once | at most once |
| neither | no | any | afresh in every run | at most once |
| any | as above | does not confirm | as above | at most once |

Where a sink does not confirm, records may be lost at any time, and those that are read again after
a crash are sent again. Records that a policy drops or that become dead letters are left out of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter

from streamflow.errors import Problem
from streamflow.models.model import Model
from streamflow.nodes.declarations import Operator, Receiver, Sink, Source, Surroundings, node_of

DEAD_LETTER = "dead_letter"
"""What the sink of the dead letters is called, in a graph and among the nodes of a run."""

DROPPING = ("drop_oldest", "drop_newest", "latest")


@dataclass(frozen=True, slots=True)
class Promise:
    """What holds for the records of one source on their way to one sink.

    Attributes:
        source: Name of the source.
        sink: Name of the sink.
        learned: How often a record is learned; ``None`` if no model on the way learns.
        delivered: How often what becomes of a record is delivered.
        notes: What that means in a crash, and its exceptions.
    """

    source: str
    sink: str
    learned: str | None
    delivered: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        learned = f"learned {self.learned}, " if self.learned else ""
        told = "; ".join((f"{learned}delivered {self.delivered}", *self.notes))
        return f"{self.source} -> {self.sink}: {told}"


def promises(
    sources: Mapping[str, Source], receivers: Mapping[str, Receiver], *, is_checkpointed: bool
) -> list[Promise]:
    """Return what is promised for each pair of a source and a sink that it reaches.

    Args:
        sources: Of a graph without cycles, by name.
        receivers: Its other nodes, by name.
        is_checkpointed: Whether it takes checkpoints.
    """
    return [
        Promise(name, sink, *_terms(source, node, edges, receivers, is_checkpointed))
        for sink, node in receivers.items()
        if isinstance(node, Sink)
        for name, source in sources.items()
        if (edges := _edges(name, sink, receivers))
    ]


def delivery_problems(
    sources: Mapping[str, Source],
    receivers: Mapping[str, Receiver],
    dead_letter: Sink | None,
    *,
    is_checkpointed: bool,
) -> Iterator[Problem]:
    """Yield what keeps sinks from delivering as they promise, located within the graph.

    Args:
        sources: Of a graph without cycles, by name.
        receivers: Its other nodes, by name.
        dead_letter: The sink of the dead letters, which is none of them.
        is_checkpointed: Whether it takes checkpoints.
    """
    ordered = _ordered(receivers)
    sinks = {name: node for name, node in receivers.items() if isinstance(node, Sink)}
    places: dict[str, tuple[str, ...]] = {name: ("sinks", name) for name in sinks}
    if dead_letter is not None:
        places[DEAD_LETTER], sinks[DEAD_LETTER] = (DEAD_LETTER,), dead_letter
    for name, sink in sinks.items():
        graph = Surroundings(sources, sinks, name in ordered, is_checkpointed)
        for problem in sink.delivery_problems(graph):
            yield problem.within(*places[name])


def _terms(
    source: Source,
    sink: Sink,
    edges: Sequence[tuple[str, str]],
    receivers: Mapping[str, Receiver],
    is_checkpointed: bool,
) -> tuple[str | None, str, tuple[str, ...]]:
    """Return how often records are learned and delivered along ``edges``, and the notes."""
    learned: str | None = "exactly once" if source.rereads else "at most once"
    if not is_checkpointed:
        learned = "afresh in every run"
    if not any(_learns(receivers[to]) for _, to in edges):
        learned = None
    delivered, *notes = _delivery(source, sink, is_checkpointed)
    if is_checkpointed and source.is_shared:
        notes.append(
            "a partition that moves to another instance is learned and delivered there "
            "from this one's last commit on"
        )
    notes += [
        f"but for records that {sender} -> {to} drops ({policy})"
        for sender, to in edges
        if (policy := receivers[to].overflow_of(sender)) in DROPPING
    ]
    if not is_checkpointed and (source.keeps_positions or not source.rereads):
        holders = dict.fromkeys(to for _, to in edges if _holds(receivers[to]))
        notes += [f"but for what {name} holds, which is lost in a crash" for name in holders]
    return learned, delivered, tuple(notes)


def _delivery(source: Source, sink: Sink, is_checkpointed: bool) -> Iterator[str]:
    """Yield how often what becomes of a record is delivered, and what that means in a crash."""
    since = "the last checkpoint" if is_checkpointed else "the last positions committed"
    comes_again = is_checkpointed or source.keeps_positions
    if not (source.rereads or source.keeps_positions):
        yield "at most once"
        yield "what is in flight is lost in a crash, since it cannot be read again"
    elif not sink.confirms:
        yield "at most once"
        if comes_again:
            yield f"but after a crash what came since {since} is sent again"
    elif sink.stores_positions or (is_checkpointed and sink.cuts_back):
        yield "exactly once"
    elif comes_again:
        yield "at least once"
        yield f"after a crash what came since {since} comes again"
    else:
        yield "once in every run"
        yield "every run begins anew"
    if not sink.confirms:
        yield "the sink does not hear what arrives, so records may be lost at any time"


def _learns(node: Receiver) -> bool:
    return isinstance(node, Model) and node.learn


def _holds(node: Receiver) -> bool:
    return isinstance(node, Operator) and node.holds


def _edges(source: str, sink: str, receivers: Mapping[str, Receiver]) -> list[tuple[str, str]]:
    """Return the edges on all ways from a source to a sink, in the order of the stream."""
    reached, needed = {source}, {sink}
    order = _in_order(receivers)
    for name in order:
        if not reached.isdisjoint(map(node_of, receivers[name].inputs)):
            reached.add(name)
    for name in reversed(order):
        if name in needed:
            needed.update(map(node_of, receivers[name].inputs))
    return [
        (sender, name)
        for name in order
        for sender in receivers[name].inputs
        if name in needed and node_of(sender) in reached
    ]


def _ordered(receivers: Mapping[str, Receiver]) -> set[str]:
    """Return the nodes whose records come in the order of one source, once at the most."""
    ordered: set[str] = set()
    for name in _in_order(receivers):
        [sender, *others] = map(node_of, receivers[name].inputs)
        node = receivers.get(sender)  # none for a source
        keeps = not isinstance(node, Operator) or node.keeps_order
        if not others and (node is None or (sender in ordered and keeps)):
            ordered.add(name)
    return ordered


def _in_order(receivers: Mapping[str, Receiver]) -> list[str]:
    """Return the names of nodes so that each comes after what it receives from."""
    inputs = {name: map(node_of, node.inputs) for name, node in receivers.items()}
    return [name for name in TopologicalSorter(inputs).static_order() if name in receivers]

"""From a graph to its tasks: one for each node, connected by channels, told where it goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from streamflow.checkpoints import Snapshot
from streamflow.contracts import Context, Resume
from streamflow.errors import StreamflowError
from streamflow.graph.graph import GraphDeclaration
from streamflow.graph.promises import DEAD_LETTER
from streamflow.nodes.declarations import Operator, Receiver, Sink, Source, node_of
from streamflow.runtime.channels import Inbox
from streamflow.runtime.checkpoints import Coordinator, SourceGate
from streamflow.runtime.dead_letters import DeadLetters
from streamflow.runtime.receiver_tasks import ProcessorTask, SinkTask
from streamflow.runtime.round_robin import RoundRobinInbox
from streamflow.runtime.source_task import SourceTask
from streamflow.runtime.starting import Checkpointing
from streamflow.runtime.tasks import NodeTask, waiting_at


def build_tasks(
    graph: GraphDeclaration,
    on_exhausted: Callable[[StreamflowError], None],
    checkpoints: Checkpointing | None = None,
) -> list[NodeTask]:
    """Return one task for each node, connected by channels."""
    letters, letter_sink = Inbox(DEAD_LETTER), graph.dead_letter
    inboxes: dict[str, Inbox] = {}
    tasks: dict[str, NodeTask] = {}
    for section, name, node in graph.nodes():
        context = _context(name, graph, checkpoints)
        edge = letters.edge(name, buffer=letter_sink.buffer) if letter_sink else None
        dead_letters = DeadLetters(name, edge, on_exhausted, graph.failure_budget)
        if isinstance(node, Receiver):
            inboxes[name] = (RoundRobinInbox if node.merge == "round_robin" else Inbox)(name)
            inboxes[name].tells_senders = isinstance(node, Operator) and node.tells_senders
        if isinstance(node, Source):
            gate = _gate(name, graph, checkpoints)
            commits = not _is_stored_by_sinks(graph)
            tasks[name] = SourceTask(node, context, dead_letters, gate, commits=commits)
        elif isinstance(node, Operator):
            kind = "model" if section == "models" else "operator"
            tasks[name] = ProcessorTask(node, kind, inboxes[name], context, dead_letters)
        elif isinstance(node, Sink):
            tasks[name] = SinkTask(node, inboxes[name], context, dead_letters)
    _connect(graph, tasks, inboxes, checkpoints.snapshot if checkpoints else None)
    if letter_sink:
        logged = DeadLetters(DEAD_LETTER, None, on_exhausted, graph.failure_budget)
        context = _context(DEAD_LETTER, graph, checkpoints)
        tasks[DEAD_LETTER] = SinkTask(letter_sink, letters, context, logged)
    return list(tasks.values())


def _connect(
    graph: GraphDeclaration,
    tasks: Mapping[str, NodeTask],
    inboxes: Mapping[str, Inbox],
    snapshot: Snapshot | None,
) -> None:
    """Make the edges, with what waits in them where a run goes on."""
    for _, name, node in graph.nodes():
        if not isinstance(node, Receiver):
            continue
        for sender in node.inputs:
            edge = inboxes[name].edge(sender, node.overflow_of(sender), node.buffer)
            tasks[node_of(sender)].outputs.append(edge)
        if snapshot is not None and (state := snapshot.states.get(waiting_at(name))):
            inboxes[name].restore(state)


def _gate(name: str, graph: GraphDeclaration, checkpoints: Checkpointing | None) -> SourceGate:
    every = graph.checkpoint.records if graph.checkpoint and checkpoints else None
    if checkpoints is None or checkpoints.snapshot is None:
        return SourceGate(every)
    snapshot = checkpoints.snapshot
    return SourceGate(every, snapshot.records.get(name, 0), snapshot.positions.get(name))


def _is_stored_by_sinks(graph: GraphDeclaration) -> bool:
    """Return whether positions are stored with what is written, and by nobody else."""
    return any(sink.stores_positions for sink in graph.sinks.values())


def _begins(name: str, graph: GraphDeclaration, checkpoints: Checkpointing) -> bool:
    """Return whether a source begins as if it had never been read, the checkpoint being the first.

    Where it began it alone knows, by what was committed before or what had come until then.
    """
    snapshot = checkpoints.snapshot
    if name not in graph.sources or snapshot is None or checkpoints.is_rewind:
        return False
    return not any(snapshot.records.values()) and not snapshot.positions.get(name)


def _context(name: str, graph: GraphDeclaration, checkpoints: Checkpointing | None) -> Context:
    """Return what a node is told when it is opened."""
    snapshot = checkpoints.snapshot if checkpoints else None
    resume = None
    if checkpoints and snapshot is not None and not _begins(name, graph, checkpoints):
        resume = Resume(
            snapshot.positions.get(name, {}),
            snapshot.marks.get(name),
            # What a sink has stored says what is published; learning goes on at the checkpoint.
            checkpoints.is_rewind or _is_stored_by_sinks(graph),
            snapshot.states.get(name),
        )
    return Context(name, graph.folder, checkpoints is not None, resume, graph.sources)


def coordinate(
    tasks: Sequence[NodeTask], graph: GraphDeclaration, checkpoints: Checkpointing
) -> Coordinator:
    """Return what takes a graph's checkpoints, made known to all tasks."""
    assert graph.checkpoint is not None
    merges = [node.merge for _, _, node in graph.nodes() if isinstance(node, Receiver)]
    coordinator = Coordinator(
        tasks,
        [task.gate for task in tasks if isinstance(task, SourceTask)],
        checkpoints.write,
        write_first=checkpoints.write_first,
        seconds=graph.checkpoint.seconds,
        is_in_step="round_robin" in merges,
    )
    for task in tasks:
        task.join(coordinator)
    return coordinator

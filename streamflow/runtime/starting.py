"""Before a run: is the graph sound, and which checkpoint does it go on from."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from anyio import CapacityLimiter, to_thread

from streamflow.checkpoints import Snapshot, Store, difference, folder_of, identify, open_store
from streamflow.errors import GraphError, Problem
from streamflow.graph.graph import GraphDeclaration, Start
from streamflow.nodes.plugins import missing_packages
from streamflow.runtime.threads import opened_in_thread

REPLAYED = "dead_letter:replayed"
"""Name, among the marks, of what is noted about replays; no sink has such a name."""

logger = logging.getLogger("streamflow")


@dataclass(frozen=True, slots=True)
class Checkpointing:
    """What a run needs to go on from a checkpoint, and to take more.

    Attributes:
        snapshot: Where it goes on; None where there is no checkpoint yet.
        is_rewind: Whether the checkpoint wins over positions that were committed after it.
        write: Makes a snapshot safe.
        write_first: Likewise the one of the start, where no checkpoint is there yet.
    """

    snapshot: Snapshot | None
    is_rewind: bool
    write: Callable[[Snapshot], object]
    write_first: Callable[[Snapshot], object] | None = None


async def check_graph(graph: GraphDeclaration) -> None:
    """Look for everything that can be known before any node is opened.

    Raises:
        GraphError: Something is wrong.
    """
    problems = [
        Problem((section, name), message)
        for section, name, node in graph.nodes()
        for message in missing_packages(node.requires)
    ]
    problems = graph.locate(problems) or await to_thread.run_sync(graph.deep_problems)
    if problems:
        raise GraphError(problems)


@asynccontextmanager
async def opened_checkpoints(
    graph: GraphDeclaration, start: Start, instance: str
) -> AsyncIterator[Checkpointing | None]:
    """Lock the graph's folder of checkpoints, if it has one, and read where to go on.

    Raises:
        CheckpointError: Another run holds the folder, or no checkpoint in it can be used.
        GraphError: The checkpoint is of another graph.
    """
    if graph.checkpoint is None:
        if start.is_reset or start.checkpoint:
            message = "expected a graph with checkpoints to begin otherwise, found one without"
            raise GraphError([Problem(("checkpoint",), f"{message}; declare checkpoint")])
        yield None
        return
    limiter = CapacityLimiter(1)
    path = folder_of(graph.checkpoint.path, folder=graph.folder, instance=instance)
    opening = open_store(path, identity=identify(graph), keep=graph.checkpoint.keep)
    async with opened_in_thread(opening, limiter) as store:
        snapshot = await to_thread.run_sync(_find_snapshot, graph, store, start, limiter=limiter)
        is_rewind = start.checkpoint is not None
        write_first = store.write_first if snapshot is None else None
        yield Checkpointing(snapshot, is_rewind, _keeping_notes(store, snapshot), write_first)


def _keeping_notes(store: Store, before: Snapshot | None) -> Callable[[Snapshot], object]:
    """Return what writes a snapshot with the notes about replays that the one before has."""
    notes = before.marks.get(REPLAYED, {}) if before else {}

    def write(snapshot: Snapshot) -> None:
        marks = dict(snapshot.marks)
        if known := {**notes, **marks.get(REPLAYED, {})}:
            marks[REPLAYED] = known
        store.write(replace(snapshot, marks=marks))

    return write


def _find_snapshot(graph: GraphDeclaration, store: Store, start: Start) -> Snapshot | None:
    """Return where a run begins, None at the streams' start; put aside what it leaves behind."""
    if start.is_reset:
        aside = store.put_aside(after=None)
        logger.info("%s: begins anew; %d checkpoints are put aside", graph.name, len(aside))
        return None
    found = store.read(start.checkpoint) if start.checkpoint else store.latest()
    if found is None:
        return None
    if problems := graph.locate(difference(found.manifest.identity, identify(graph))):
        if found.is_first and not start.checkpoint:  # nothing would be lost
            store.put_aside(after=None)
            return None
        raise GraphError(problems)
    snapshot = found.snapshot()
    if start.checkpoint:
        store.put_aside(after=start.checkpoint)
    logger.info("%s: goes on from checkpoint %s", graph.name, found.name)
    return snapshot

"""Replay: dead letters go through their graph once more.

Theory of operation. The graph runs with each source replaced by its dead letters, which are decoded
as the source decodes. Sinks add to what is there, every edge waits, and any number may fail again:
what does goes to the dead letters again. When all is delivered, a note beside the file says how far
it has been replayed:

    dead.jsonl            1 2 3 4 5 6 7     the next replay begins at 6
    dead.jsonl.replayed           5 letters, their bytes, and the checksum of those

Until then nothing is noted, so that an interrupted replay is done again from where it began. The
note holds for a file that begins with the same bytes, and for no other.

With checkpoints the run goes on from the newest one and takes one at its end, in which the
positions of the sources are those of before. An interrupted one takes none. The note is part of
that checkpoint, and of all later ones, so that what is learned is noted in the same moment; a
process that dies before it has written the file beside the letters leaves that to the next replay.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import anyio
from anyio import to_thread

from streamflow.checkpoints import Snapshot, folder_of, reading
from streamflow.codecs.conversion import decode
from streamflow.contracts import Codec, Context, Fetch, Reader
from streamflow.errors import ConnectorError
from streamflow.graph.graph import GraphDeclaration, Start
from streamflow.nodes.declarations import Sink, Source
from streamflow.nodes.plugins import SINKS, load
from streamflow.records import Batch, Partition, if_any, to_columns
from streamflow.runtime.letters import Damaged, Letter, LetterFile
from streamflow.runtime.run import Run, opened_run
from streamflow.runtime.starting import (
    REPLAYED,
    Checkpointing,
    check_graph,
    opened_checkpoints,
)

logger = logging.getLogger("streamflow")

NEVER = 2**62
"""Records between checkpoints where there is to be only the last one."""

CHUNK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Note:
    """How far a file of dead letters has been replayed.

    Attributes:
        letters: How many letters, from the first.
        size_bytes: How many bytes they take.
        sha256: Checksum of these bytes.
    """

    letters: int
    size_bytes: int
    sha256: str


def note_path(path: Path) -> Path:
    """Return where the note about a file of dead letters lies."""
    return path.with_name(f"{path.name}.replayed")


def num_replayed(path: Path) -> int:
    """Return how many letters of a file have been replayed.

    Raises:
        ConnectorError: What is noted about it cannot be read.
    """
    try:
        note = Note(**json.loads(note_path(path).read_bytes()))
    except FileNotFoundError:
        return 0
    except (TypeError, ValueError) as error:
        message = f"{note_path(path)}: expected a note, found {error}; remove it to replay all"
        raise ConnectorError(message) from error
    return note.letters if _sha256(path, note.size_bytes) == note.sha256 else 0


def _sha256(path: Path, size_bytes: int) -> str:
    """Return the checksum of a file's first bytes; nothing if it has fewer."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size_bytes and (data := file.read(min(size_bytes, CHUNK_BYTES))):
            digest.update(data)
            size_bytes -= len(data)
    return "" if size_bytes else digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Replay:
    """Which letters of a file are to be replayed.

    Attributes:
        letters: The file.
        first: Number of the first letter to replay.
        note: What is noted when they have been.
    """

    letters: LetterFile
    first: int
    note: Note

    def __len__(self) -> int:
        return self.note.letters - self.first + 1

    def finish(self) -> None:
        """Note beside the file that all letters have been replayed.

        Raises:
            ConnectorError: The file does not begin any more with the letters that were.
        """
        path = self.letters.path
        if _sha256(path, self.note.size_bytes) != self.note.sha256:
            message = (
                f"{path}: expected the letters that were replayed, found others; stop what else "
                f"writes them, and replay again"
            )
            raise ConnectorError(message)
        _write_note(path, self.note)


def _write_note(path: Path, note: Note) -> None:
    unfinished = path.with_name(f"{note_path(path).name}.new")
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(asdict(note), file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(note_path(path))


def _recover_note(graph: GraphDeclaration, path: Path, instance: str) -> None:
    """Note beside a file what the newest checkpoint knows of its replay, if that is more.

    Raises:
        CheckpointError: The checkpoints cannot be read.
    """
    if graph.checkpoint is None:
        return
    folder = folder_of(graph.checkpoint.path, folder=graph.folder, instance=instance)
    checkpoint = reading.newest(folder) if folder.is_dir() else None
    if checkpoint is None or path.name not in checkpoint.manifest.marks.get(REPLAYED, {}):
        return
    note = Note(**checkpoint.manifest.marks[REPLAYED][path.name])
    is_of_file = _sha256(path, note.size_bytes) == note.sha256
    if is_of_file and note.letters > num_replayed(path):
        logger.info("%s: %d letters are replayed, as a checkpoint says", path, note.letters)
        _write_note(path, note)


async def plan_replay(graph: GraphDeclaration, letters: LetterFile, instance: str = "0") -> Replay:
    """Look through a file for the letters that have not been replayed.

    Raises:
        ConnectorError: It cannot be read, grows meanwhile, or holds something that is no letter of
            this graph.
    """
    path = letters.path
    if not path.is_file():
        message = f"{path}: expected dead letters, found no file; check the path"
        raise ConnectorError(message)
    size_bytes = path.stat().st_size
    await to_thread.run_sync(_recover_note, graph, path, instance)
    replayed = await to_thread.run_sync(num_replayed, path)
    last = 0
    async with aclosing(letters.batches()) as batches:
        async for batch in batches:
            for letter in batch:
                last = letter.number
                if last > replayed:
                    _check_letter(letter, graph, path)
    if path.stat().st_size != size_bytes:
        message = f"{path}: expected a file at rest, found it growing; stop what writes it"
        raise ConnectorError(message)
    digest = await to_thread.run_sync(_sha256, path, size_bytes)
    return Replay(letters, replayed + 1, Note(last, size_bytes, digest))


def _check_letter(letter: Letter | Damaged, graph: GraphDeclaration, path: Path) -> None:
    if isinstance(letter, Damaged):
        message = f"{path}: {letter.cause} (letter {letter.number}); remove it"
        raise ConnectorError(message)
    if letter.source not in _sources_of(graph):
        message = (
            f"{path}: expected letters of {', '.join(graph.sources)}, found letter {letter.number} "
            f"of {letter.source or 'no source'}; replay it with the graph that it comes from"
        )
        raise ConnectorError(message)


def _sources_of(graph: GraphDeclaration) -> dict[str, str]:
    """Return the source that letters belong to, by the name that they have."""
    names = {name: name for name in graph.sources}
    return names if len(names) > 1 else names | {"": next(iter(names))}


@asynccontextmanager
async def open_replay(
    graph: GraphDeclaration, replay: Replay, *, instance: str = "0"
) -> AsyncIterator[Run]:
    """Run a graph over dead letters; as `Graph.open` does, but to the end of the letters.

    Raises:
        GraphError: The graph cannot run.
        StreamflowError: A node could not be opened.
    """
    await check_graph(graph)
    async with opened_checkpoints(graph, Start(), instance) as checkpoints:
        latch = _Latch(checkpoints, replay) if checkpoints else None
        through = replace(checkpoints, write=latch.write) if checkpoints and latch else None
        async with opened_run(replaying_graph(graph, replay), through) as run:
            if latch:
                latch.run = run
            yield run


class _Latch:
    """Writes the checkpoint of a replay, if it is not interrupted."""

    def __init__(self, checkpoints: Checkpointing, replay: Replay) -> None:
        self.run: Run | None = None
        self._checkpoints = checkpoints
        self._replay = replay

    def write(self, snapshot: Snapshot) -> None:
        """Write what the letters have changed, at the place where the streams stand."""
        if self.run is None or self.run.stats().state != "running":
            return
        before = self._checkpoints.snapshot or Snapshot()
        noted = {self._replay.letters.path.name: asdict(self._replay.note)}
        self._checkpoints.write(
            replace(
                snapshot,
                records=before.records,
                positions=before.positions,
                marks={**snapshot.marks, REPLAYED: noted},
            )
        )


def replaying_graph(graph: GraphDeclaration, replay: Replay) -> GraphDeclaration:
    """Return a graph with its dead letters for sources."""
    named = _sources_of(graph)
    waiting = {"overflow": "block"}
    dead_letter: Sink = graph.dead_letter or load(SINKS, "file")(
        path=str(replay.letters.path), format=replay.letters.format
    )
    changes: dict[str, Any] = {
        "sources": {
            name: ReplaySource(
                replay=replay, names=[own for own in named if named[own] == name], original=source
            )
            for name, source in graph.sources.items()
        },
        "operators": {
            name: node.model_copy(update=waiting) for name, node in graph.operators.items()
        },
        "models": {name: node.model_copy(update=waiting) for name, node in graph.models.items()},
        "sinks": {
            name: node.adding().model_copy(update=waiting) for name, node in graph.sinks.items()
        },
        "dead_letter": dead_letter.adding(),
        "failure_budget": "none",
    }
    if graph.checkpoint:
        changes["checkpoint"] = graph.checkpoint.model_copy(update={"every": NEVER})
    return graph.model_copy(update=changes)


class ReplaySource(Source):
    """Gives the dead letters of another source."""

    type: Literal["replay"] = "replay"
    replay: Replay
    names: tuple[str, ...]
    original: Source

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[Reader]:
        """Open the file of letters, and give a reader of those of this source."""
        async with aclosing(self.replay.letters.batches()) as batches:
            yield ReplayReader(self, context, batches)


class ReplayReader:
    """Reads a `ReplaySource`; a letter that is there twice is given once."""

    def __init__(
        self,
        source: ReplaySource,
        context: Context,
        batches: AsyncIterator[list[Letter | Damaged]],
    ) -> None:
        self._source = source
        self._context = context
        self._batches = batches
        self._fetches: deque[Fetch] = deque()
        self._codecs: dict[Partition, Codec | None] = {}
        self._known: set[bytes] = set()
        self._partition = Partition(context.name, (("letters", "replay"),), "letter")

    async def receive(self) -> Fetch:
        """Return the next letters as records.

        Raises:
            anyio.EndOfStream: All have been given.
            ConnectorError: The letters cannot be read, or what it takes to decode them is gone.
        """
        while not self._fetches:
            try:
                batch = await anext(self._batches)
            except StopAsyncIteration:
                raise anyio.EndOfStream from None
            wanted = list(filter(self._is_wanted, batch))
            self._fetches.extend(await to_thread.run_sync(self._decoded, wanted))
        return self._fetches.popleft()

    async def commit(self, positions: Mapping[Partition, int]) -> None:
        """Do nothing: the end of all is noted, not how far it goes."""

    def behind(self) -> int | None:
        """Return ``None``: the letters of other sources are not told apart."""
        return None

    def _is_wanted(self, letter: Letter | Damaged) -> bool:
        replay = self._source.replay
        if not (isinstance(letter, Letter) and letter.source in self._source.names):
            return False
        if not replay.first <= letter.number <= replay.note.letters:
            return False
        content = repr((letter.position, letter.original)).encode()
        digest = hashlib.blake2b(content, digest_size=16).digest()
        is_new = digest not in self._known
        self._known.add(digest)
        return is_new

    def _decoded(self, letters: Sequence[Any]) -> list[Fetch]:
        """Return records, as many at once as stood in one partition."""
        groups = groupby(letters, key=lambda item: (item.partition, item.payload is None))
        return [self._fetch(partition, list(group)) for (partition, _), group in groups]

    def _fetch(self, partition: Partition, letters: list[Letter]) -> Fetch:
        partition = replace(partition, source=self._context.name)
        codec = self._codec(partition, letters[0])
        ends = {self._partition: letters[-1].number + 1}
        payloads = [letter.payload for letter in letters]
        is_decoded = codec is not None and payloads[0] is not None
        batch = Batch(
            [] if is_decoded else to_columns([letter.original for letter in letters]),
            [partition] * len(letters),
            [letter.offset for letter in letters],
            keys=if_any([letter.key for letter in letters]),
            timestamps_ms=if_any([letter.timestamp_ms for letter in letters]),
            headers=if_any([letter.headers for letter in letters]),
            originals=[payload or b"" for payload in payloads] if is_decoded else None,
            size_bytes=sum(64 + len(str(letter.original)) for letter in letters),
        )
        if codec is None or batch.originals is None:
            return Fetch(batch, ends)
        return decode(codec, batch.with_values(list(batch.originals)), ends)

    def _codec(self, partition: Partition, letter: Letter) -> Codec | None:
        """Return what decodes letters of a partition; ``None`` where they hold values."""
        if partition not in self._codecs:
            codec = self._source.original.decoder(self._context.folder, letter.position)
            self._codecs[partition] = codec
        return self._codecs[partition]

"""The folder of checkpoints of a run: written whole or not at all, and only by one run.

Theory of operation. A checkpoint is written to a folder with a name that nobody looks for: the
tensors of each node, every file synced and summed, then the manifest, which lists them, then the
folder itself. Renaming it to its number is the moment from which it counts, and only when that
name is safe, too, are older ones removed: first renamed, so that nobody finds half of one.

    .00000042.new/m.safetensors, .../manifest.json -> 00000042/ -> .00000039.old/ -> nothing

Numbers grow for ever, also where a run went back to an earlier checkpoint. They begin with 0 for
the checkpoint before the first record, which tells how long files were then.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from streamflow.checkpoints import manifest, reading, tensors, trees
from streamflow.checkpoints.disk import (
    Sum,
    explained,
    make_folder,
    sync_file,
    sync_folder,
    write_file,
)
from streamflow.checkpoints.identity import Identity
from streamflow.checkpoints.lock import Lock, locked
from streamflow.checkpoints.manifest import Manifest, SavedState
from streamflow.checkpoints.reading import Checkpoint
from streamflow.checkpoints.snapshot import Snapshot
from streamflow.errors import CheckpointError, GraphError, Problem

PASSING = re.compile(r"\.[0-9]{8,}\.(new|old)")
ASIDE = re.compile(r"([0-9]{8,})\.aside")
LONGEST_NAME = 150
"""Characters of a node's name that its file's name takes over."""

logger = logging.getLogger("streamflow")


class Store:
    """A locked folder of checkpoints; made by `open_store`. One thread may call it at a time."""

    def __init__(self, path: Path, identity: Identity, keep: int, lock: Lock) -> None:
        self.path = path
        self._identity = identity
        self._keep = keep
        self._lock = lock

    def __repr__(self) -> str:
        return f"<Store {self.path}: {len(reading.names(self.path))} checkpoints>"

    def latest(self) -> Checkpoint | None:
        """Return the newest checkpoint that is whole; None if there has been none.

        One that is damaged is skipped with a warning, unless none is left.

        Raises:
            CheckpointError: All are damaged, another version of streamflow wrote the newest one, or
                the folder cannot be read.
        """
        return reading.newest(self.path)

    def read(self, name: str) -> Checkpoint:
        """Return the checkpoint ``name``.

        Raises:
            CheckpointError: There is none of this name, or it is damaged.
        """
        known = reading.names(self.path)
        if name not in known:
            message = f"{self.path}: expected the name of a checkpoint, found {name}; "
            message += f"there are: {', '.join(known) or 'none'}"
            raise CheckpointError(message)
        checkpoint, damage = reading.examine(self.path / name)
        if checkpoint is None or damage:
            message = f"{damage}; choose another one"
            raise CheckpointError(message)
        return checkpoint

    def write(self, snapshot: Snapshot) -> Checkpoint:
        """Write a checkpoint, and remove those that are more than to be kept.

        When it returns, the checkpoint survives any crash of the process or the machine. When it
        raises, the ones before are as they were. A call that outlives the store, as its thread was
        abandoned, keeps the folder locked until it ends.

        Raises:
            CheckpointError: It cannot be written, or a state holds what a checkpoint cannot hold.
        """
        return self._write(snapshot, lowest=1)

    def write_first(self, snapshot: Snapshot) -> Checkpoint:
        """Write the checkpoint of a stream's start, with the number 0 if there has been no other.

        Raises:
            CheckpointError: As of `write`.
        """
        return self._write(snapshot, lowest=0)

    def _write(self, snapshot: Snapshot, *, lowest: int) -> Checkpoint:
        with self._lock.used(), explained(self.path, "to write a checkpoint"):
            self._lock.check()
            path = self.path / f"{self._next_number(lowest):08}"
            passing = self.path / f".{path.name}.new"
            if passing.exists():  # an earlier attempt could not remove it
                shutil.rmtree(passing)
            try:
                written = _write(passing, snapshot, self._identity)
                passing.rename(path)
            except BaseException:
                shutil.rmtree(passing, ignore_errors=True)
                raise
            sync_folder(self.path)
            self._remove_old()
        return Checkpoint(path, written)

    def put_aside(self, *, after: str | None) -> list[str]:
        """Rename the checkpoints that are newer than ``after``, or all, so that they do not count.

        They are never removed. Returns their names before.

        Raises:
            CheckpointError: They cannot be renamed.
        """
        found = reading.names(self.path)
        aside = [name for name in found if after is None or int(name) > int(after)]
        with explained(self.path, "to put checkpoints aside"):
            self._lock.check()
            for name in reversed(aside):  # so that a crash leaves no gap
                (self.path / name).rename(self.path / f"{name}.aside")
            sync_folder(self.path)
        return aside

    def _next_number(self, lowest: int) -> int:
        aside = [found[1] for path in self.path.iterdir() if (found := ASIDE.fullmatch(path.name))]
        return max([lowest, *(int(name) + 1 for name in [*reading.names(self.path), *aside])])

    def _remove_old(self) -> None:
        for name in reading.names(self.path)[: -self._keep]:
            passing = self.path / f".{name}.old"
            try:
                (self.path / name).rename(passing)
                shutil.rmtree(passing)
            except OSError as error:  # the new one is safe, and that is what counts
                logger.warning("%s: expected to remove it, found: %s", self.path / name, error)


@contextmanager
def open_store(path: Path, *, identity: Identity, keep: int) -> Iterator[Store]:
    """Make the folder if there is none, lock it, and remove what a crash left half written.

    Args:
        path: The folder, of this run alone.
        identity: Of the graph that is run; it goes into the checkpoints and is not compared here.
        keep: Number of checkpoints to keep, at least 1.

    Raises:
        CheckpointError: Another run holds the folder, or it cannot be made or written.
    """
    assert keep >= 1
    with explained(path, "a folder for checkpoints"):
        make_folder(path)
    with locked(path) as lock:
        with explained(path, "a folder for checkpoints"):
            for leftover in path.iterdir():
                if PASSING.fullmatch(leftover.name):
                    shutil.rmtree(leftover)
        yield Store(path, identity, keep, lock)


def folder_of(path: str, *, folder: Path, instance: str) -> Path:
    """Return where the checkpoints of an instance lie.

    Args:
        path: As the graph has it; ``{instance}`` stands for the instance.
        folder: Where relative paths start.
        instance: What this run is called among those of the same graph.

    Raises:
        GraphError: The path needs an instance and there is none, or it is no name.
    """
    if "{instance}" in path:
        if not instance or re.search(r"[/\\\0]", instance) or instance in (".", ".."):
            message = (
                f"expected a name for {{instance}}, found {instance or 'none'}; "
                f"give each run of the graph a name of its own"
            )
            raise GraphError([Problem(("checkpoint", "path"), message)])
        path = path.replace("{instance}", instance)
    return folder / path


def _write(path: Path, snapshot: Snapshot, identity: Identity) -> Manifest:
    """Write all files of a checkpoint to a new folder, for good."""
    path.mkdir()
    files: dict[str, Sum] = {}
    states: dict[str, SavedState] = {}
    for node, name in file_names(snapshot.states).items():
        encoded = trees.encode(dict(snapshot.states[node]), where=node)
        if encoded.tensors:
            tensors.write(path / name, encoded.tensors)
            files[name] = sync_file(path / name)
        states[node] = SavedState(encoded.json, name if encoded.tensors else None)
    written = Manifest(
        identity=identity,
        time=datetime.now(UTC),
        records=snapshot.records,
        positions=snapshot.positions,
        states=states,
        marks=snapshot.marks,
        files=files,
    )
    write_file(path / manifest.NAME, manifest.dump(written))
    sync_folder(path)
    return written


def file_names(nodes: Iterable[str]) -> dict[str, str]:
    """Return a name for each node's file: safe on any file system, also one that ignores case."""
    taken: set[str] = set()
    names: dict[str, str] = {}
    for node in nodes:
        stem = quote(node, safe="", errors="backslashreplace")
        if len(stem) > LONGEST_NAME:
            digest = hashlib.sha256(node.encode("utf-8", "backslashreplace")).hexdigest()
            stem = f"{stem[:LONGEST_NAME]}~{digest[:16]}"
        name = unique = stem
        number = 1
        while unique.casefold() in taken:
            number += 1
            unique = f"{name}~{number}"
        taken.add(unique.casefold())
        names[node] = f"{unique}.safetensors"
    return names

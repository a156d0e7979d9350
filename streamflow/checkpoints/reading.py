"""Checkpoints as they lie in their folder; reading needs no lock.

path/.lock             held by the run
path/00000041/         a checkpoint: manifest.json, and one file of tensors for each node
path/00000042/
path/00000043.aside/   put aside, when the run went on from an earlier one
path/.00000044.new/    being written: not looked at
path/.00000040.old/    being removed: likewise
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamflow.checkpoints import manifest, tensors, trees
from streamflow.checkpoints.disk import checksum, explained
from streamflow.checkpoints.manifest import FormatError, Manifest
from streamflow.checkpoints.snapshot import Snapshot
from streamflow.errors import CheckpointError

NAME = re.compile(r"[0-9]{8,}")

logger = logging.getLogger("streamflow")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose manifest is whole; what its other files hold is read when asked for.

    Attributes:
        path: Its folder.
        manifest: All but its tensors.
    """

    path: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """Its name among the others."""
        return self.path.name

    @property
    def is_first(self) -> bool:
        """Whether it was taken before the first record."""
        found = self.manifest
        return not any(found.records.values()) and not any(found.positions.values())

    @property
    def size_bytes(self) -> int:
        """How much its files take together."""
        with explained(self.path, "a checkpoint"):
            size = (self.path / manifest.NAME).stat().st_size
        return size + sum(found.size_bytes for found in self.manifest.files.values())

    def problems(self) -> list[str]:
        """Read all files; return what is wrong with them."""
        return [text for name in self.manifest.files if (text := self._problem(name))]

    def _problem(self, name: str) -> str:
        expected = self.manifest.files[name]
        try:
            size_bytes = (self.path / name).stat().st_size
            if size_bytes != expected.size_bytes:
                return f"{name}: expected {expected.size_bytes} bytes, found {size_bytes}"
            found = checksum(self.path / name)
        except OSError as error:
            return f"{name}: expected a file, found none that can be read ({error.strerror})"
        return "" if found == expected else f"{name}: expected its checksum, found another one"

    def snapshot(self) -> Snapshot:
        """Return all that the checkpoint holds, in memory of its own.

        Raises:
            CheckpointError: A file cannot be read.
        """
        return Snapshot(
            records=self.manifest.records,
            positions=self.manifest.positions,
            states={node: self.state(node) for node in self.manifest.states},
            marks=self.manifest.marks,
        )

    def state(self, node: str) -> dict[str, Any]:
        """Return the state of a node.

        Raises:
            CheckpointError: Its file cannot be read.
        """
        saved = self.manifest.states[node]
        with self._loading(saved.file) as load:
            state: dict[str, Any] = trees.decode(saved.tree, load)
        return state

    def outline(self, node: str) -> dict[str, Any]:
        """Return the state of a node with a `Header` in the place of each tensor, without torch.

        Raises:
            CheckpointError: Its file cannot be read.
        """
        saved = self.manifest.states[node]
        with explained(self.path, "a checkpoint that is whole"):
            found = tensors.headers(self.path / saved.file) if saved.file else {}
        outline: dict[str, Any] = trees.decode(saved.tree, lambda name, _dtype: found[name])
        return outline

    @contextmanager
    def _loading(self, file: str | None) -> Iterator[Callable[[str, str | None], Any]]:
        if file is None:
            yield trees.without_tensors
            return
        with ExitStack() as stack:
            stack.enter_context(explained(self.path / file, "a checkpoint that is whole"))
            yield stack.enter_context(tensors.reading(self.path / file))


def read(path: Path) -> Checkpoint:
    """Read the manifest of the checkpoint in the folder ``path``.

    Raises:
        FormatError: Another version of streamflow wrote it.
        CheckpointError: There is none, or its manifest is damaged.
    """
    with explained(path / manifest.NAME, "the manifest of a checkpoint"):
        content = (path / manifest.NAME).read_bytes()
    try:
        return Checkpoint(path, manifest.parse(content))
    except CheckpointError as error:
        error.args = (f"{path / error.args[0]}",)
        raise


def names(folder: Path) -> list[str]:
    """Return the names of all checkpoints in a folder, oldest first, whole or not.

    Raises:
        CheckpointError: The folder cannot be read.
    """
    with explained(folder, "a folder of checkpoints"):
        found = [path.name for path in folder.iterdir() if NAME.fullmatch(path.name)]
    return sorted(found, key=int)


def is_checkpoint(path: Path) -> bool:
    """Return whether a folder is a checkpoint, maybe a damaged one, and not a folder of them."""
    return bool(NAME.fullmatch(path.name)) or (path / manifest.NAME).exists()


def newest(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint that is whole; None if there is none at all.

    One that is damaged is skipped with a warning.

    Raises:
        FormatError: Another version of streamflow wrote the newest one.
        CheckpointError: All are damaged, or the folder cannot be read.
    """
    while found := names(folder):
        damages: list[str] = []
        for name in reversed(found):
            checkpoint, damage = examine(folder / name)
            if checkpoint and not damage:
                return checkpoint
            logger.warning("%s; trying the one before", damage)
            damages.append(damage)
        if names(folder) == found:  # else a run has written and removed some meanwhile
            message = (
                f"{folder}: expected a checkpoint that is whole, found all damaged "
                f"({'; '.join(damages)}); restore one from a backup, or move the folder away to "
                f"begin anew"
            )
            raise CheckpointError(message)
    return None


def examine(path: Path) -> tuple[Checkpoint | None, str]:
    """Return a checkpoint, if its manifest is whole, and what is wrong with it, if anything is.

    Raises:
        FormatError: Another version of streamflow wrote it.
    """
    try:
        checkpoint = read(path)
    except FormatError:
        raise
    except CheckpointError as error:
        return None, str(error)
    problems = checkpoint.problems()
    return checkpoint, f"{path}: {', '.join(problems)}" if problems else ""

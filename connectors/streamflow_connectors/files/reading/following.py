"""Following files that grow, are rotated, are emptied, and appear.

Files are looked at again and again, often while something comes and four times a second in
silence. A library that is told of changes by the kernel (watchfiles, which is well kept and speaks
anyio) would save these looks, but not replace them: network and container file systems tell
nothing, a full queue drops what it had to tell, and each word of a change takes the same looks to
find out which file is meant now. A look at a file takes some microseconds.

Which file is read, of those that have something to read:

    app.log.1   caught up, then moved here: read to its end before what has taken its place
    app.log     seen after it, not caught up: its turn comes when all before it are dry
    b.log       caught up: takes turns with all others that are
"""

from __future__ import annotations

import glob
import logging
import os
import stat
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

import anyio
import anyio.lowlevel
from anyio import to_thread

from streamflow.codecs.formats import Format
from streamflow.contracts import Context, Fetch
from streamflow.errors import ConnectorError
from streamflow.records import Batch, Partition
from streamflow_connectors.files.reading.followed import (
    FINISHED,
    FileIdentity,
    FollowedFile,
    key_of,
)
from streamflow_connectors.files.stamp import Stamp

logger = logging.getLogger("streamflow.file")

Found: TypeAlias = Mapping[tuple[int, int], tuple[str, os.stat_result]]
"""Files as they are seen, by device and inode: where, and how."""

_LEAST_WAIT: Final = 0.02
_MOST_WAIT: Final = 0.25
"""Seconds between two looks."""

AFTERLIFE: Final = 30.0
"""Seconds of silence for which a file is still followed that was renamed or removed: programs write
on in it until they have noticed."""

_TELLING_BYTES: Final = 64
"""So many bytes that are the same make a file with another inode a copy of one that is gone."""

_MOST_OPEN: Final = 64
"""Files that stay open although they are silent."""


class FollowingReader:
    """Reads what comes to stand in files.

    Args:
        path: A file or a pattern, as written in the graph.
        declared: The format.
        context: Of the node.
        end_after: Seconds of silence after which the stream ends; None for never.
        stamp: What gives records their time, if anything does.
    """

    def __init__(
        self,
        path: str,
        declared: Format,
        context: Context,
        *,
        end_after: float | None,
        stamp: Stamp | None = None,
    ) -> None:
        self._path = path
        self._context = context
        self._end_after = end_after
        self._opened = partial(FollowedFile, declared=declared, context=context, stamp=stamp)
        self._is_pattern = glob.has_magic(path) and not (context.folder / path).exists()
        self._files: list[FollowedFile] = []
        self._sizes: dict[tuple[int, int], int] = {}
        self._told: deque[Fetch] = deque()
        self._is_first = True
        self._is_ending = False
        self._next_look = 0.0
        self._wait = _LEAST_WAIT
        self._silent_since: float | None = None
        self._num_lost = 0

    def __repr__(self) -> str:
        return f"<FollowingReader {self._context.name}: {self._path}, {len(self._files)} files>"

    async def receive(self) -> Fetch:
        """Wait for records and return those of one file.

        Raises:
            anyio.EndOfStream: Nothing came for as long as ``end_after`` says.
            ConnectorError: A file cannot be read, or is damaged.
        """
        await anyio.lowlevel.checkpoint()
        while not self._is_ending or self._files or self._told:
            fetch = await to_thread.run_sync(self._read, anyio.current_time())
            if fetch is None:
                await self._rest()
            elif fetch.ends:
                self._silent_since, self._wait = None, _LEAST_WAIT
                return fetch
        raise anyio.EndOfStream

    async def commit(self, positions: Mapping[Partition, int]) -> None:
        """Do nothing: a file has no place to store positions."""

    def behind(self) -> int | None:
        """Return None: how many records a file has is known when it has been read."""
        return None

    def report(self) -> Mapping[str, int]:
        """Return how often what had not been read of a file was gone."""
        return {"files cut short or gone": self._num_lost}

    def close(self) -> None:
        """Close all files."""
        for file in self._files:
            file.close()

    async def _rest(self) -> None:
        """Wait until it is time to look again, or begin to end."""
        now = anyio.current_time()
        if self._silent_since is None:
            self._silent_since = now
        left = _MOST_WAIT
        if self._end_after is not None:
            left = self._silent_since + self._end_after - now
        if left <= 0:
            self._is_ending = True
            return
        await anyio.sleep(min(self._wait, left))
        self._wait = min(2 * self._wait, _MOST_WAIT)
        self._next_look = 0.0

    def _read(self, now: float) -> Fetch | None:
        """Return what comes next; nothing at all, without ends, while rows are left out.

        Raises:
            ConnectorError: A file cannot be read, or is damaged.
        """
        if now >= self._next_look and not self._is_ending:
            self._look(now)
        if self._told:
            return self._told.popleft()
        for file in self._in_turn():
            if self._is_ending:
                file.end()
            fetch = file.read()
            if fetch is not None:
                self._has_given(file, now)
                return fetch
            if file.is_at_end:
                self._forget(file, is_told=not self._is_ending)
            elif file.is_replaced or file.is_short:
                self._replace(file, now)
            elif not file.is_dry:
                return Fetch(Batch([], [], []), {})
        return self._told.popleft() if self._told else None

    def _in_turn(self) -> Iterator[FollowedFile]:
        """Yield the files that may be read, one that has not caught up once those before have."""
        for file in list(self._files):
            if self._is_ending or file.is_worth_reading(self._sizes.get(file.key)):
                had_caught_up = file.has_caught_up
                yield file
                if not (had_caught_up or file.has_caught_up):
                    return

    def _has_given(self, file: FollowedFile, now: float) -> None:
        file.last = now
        if file.has_caught_up and not self._is_ending:  # the others' turn
            self._files.remove(file)
            self._files.append(file)

    def _look(self, now: float) -> None:
        """Find out which files there are, and which of those that are known are elsewhere."""
        began = time.perf_counter()
        found = {key_of(status): (path, status) for path, status in self._find()}
        self._sizes = {key: status.st_size for key, (_, status) in found.items()}
        if self._is_first:
            self._is_first = False
            self._resume(found, now)
        for file in list(self._files):
            place = found.pop(file.key, None)
            self._see(file, place[0] if place else None, now)
        for path, status in sorted(found.values(), key=lambda item: (item[1].st_mtime_ns, item[0])):
            self._follow(path, status, now)
        for file in sorted(self._files, key=lambda file: file.last)[:-_MOST_OPEN]:
            if file.has_caught_up and not file.is_gone:
                file.close()
        # Looking at many files is not to take more than a tenth of the time.
        self._next_look = now + max(_MOST_WAIT, 10 * (time.perf_counter() - began))

    def _find(self) -> Iterator[tuple[str, os.stat_result]]:
        folder = self._context.folder
        paths = [self._path]
        if self._is_pattern:
            paths = glob.glob(self._path, root_dir=folder, recursive=True)
        for path in paths:
            try:
                status = os.stat(folder / path)
            except OSError:  # gone meanwhile, or not there yet
                continue
            if stat.S_ISREG(status.st_mode):
                yield path, status
            elif not self._is_pattern:
                message = (
                    f"{self._context.name}: expected a file to follow at {path}, found something "
                    f"else; name a file, or leave follow out"
                )
                raise ConnectorError(message)

    def _see(self, file: FollowedFile, path: str | None, now: float) -> None:
        """Take note of where a file is."""
        if path is not None and path != file.path:
            file.path, file.has_caught_up = path, False  # before what has taken its place
        elif path is None and not file.is_gone:
            file.has_caught_up, file.last = False, now
            if file.is_paused and not self._reopen(file):
                self._forget(file, is_told=True)
                return
        elif path is None and now >= file.last + AFTERLIFE:
            file.end()
        file.is_gone = path is None
        if not file.has_caught_up:
            self._files.remove(file)
            self._files.append(file)

    def _reopen(self, file: FollowedFile) -> bool:
        """Open a file again that was renamed while it was closed, if it is still in its folder."""
        folder = self._context.folder
        for path, status in _beside(folder / file.path):
            if key_of(status) == file.key:
                with suppress(OSError):
                    file.go_on_in(os.path.relpath(path, folder))
                    return True
        return False

    def _follow(self, path: str, status: os.stat_result, now: float) -> bool:
        """Begin to read a file that is new, and say whether it is still there."""
        try:
            file = self._opened(path)
        except ConnectorError:
            if (self._context.folder / path).exists():
                raise
            return False  # gone meanwhile
        if file.key != key_of(status):  # another one by now: at the next look
            file.close()
            return False
        file.last = now
        self._files.append(file)
        return True

    def _replace(self, file: FollowedFile, now: float) -> None:
        """Go on in a copy of a file that was emptied, or tell that there is none."""
        copy = None if file.is_short else next(self._copies(file), None)
        if copy is not None:
            logger.info("%s: goes on in %s, a copy", self._context.name, copy)
            emptied, was_gone = file.key, file.is_gone
            file.go_on_in(copy)
            file.is_gone, file.last = True, now
            if was_gone:
                self._follow_renamed(emptied, file, now)
            return
        self._tell_loss(file.path, file.num_known, "emptied or replaced")
        self._forget(file, is_told=file.num_read > 0)

    def _follow_renamed(self, key: tuple[int, int], after: FollowedFile, now: float) -> None:
        """Read a file after its copy that was emptied, written anew and renamed between looks."""
        folder = self._context.folder
        for path, status in _beside(folder / self._path):
            if key_of(status) == key and self._follow(os.path.relpath(path, folder), status, now):
                file = self._files.pop()
                file.is_gone = True
                self._files.insert(self._files.index(after) + 1, file)
                return

    def _copies(self, file: FollowedFile) -> Iterator[str]:
        folder = self._context.folder
        known = {other.key for other in self._files}
        for path, status in _beside(folder / file.path):
            if key_of(status) not in known and file.is_copied_to(path):
                yield os.path.relpath(path, folder)

    def _forget(self, file: FollowedFile, *, is_told: bool) -> None:
        file.close()
        self._files.remove(file)
        self._next_look = 0.0
        if is_told and file.num_read:
            self._told.append(file.finished())

    def _tell_loss(self, path: str, num_read: int, what: str) -> None:
        self._num_lost += 1
        logger.warning(
            "%s: %s was %s; what it had after row %d is lost unless it had been read",
            self._context.name,
            path,
            what,
            num_read,
        )

    def _resume(self, found: Found, now: float) -> None:
        """Go on in the files that an earlier run has read, wherever they are now."""
        resume = self._context.resume
        places = {place: dict(place) for place in resume.positions} if resume else {}
        known = {
            place: FileIdentity.parse(str(entries["file"]))
            for place, entries in places.items()
            if "file" in entries
        }
        taken: set[Path] = set()
        for place, identity in known.items():
            assert resume is not None
            position, name = resume.positions[place], str(places[place]["path"])
            if position == FINISHED:
                continue
            path = self._locate(name, identity, [path for path, _ in found.values()], taken)
            if path is None:
                self._tell_loss(name, position - 1, "emptied, replaced or removed")
                partition = Partition(self._context.name, place, "line")
                self._told.append(Fetch(Batch([], [], []), {partition: FINISHED}))
                continue
            taken.add(self._context.folder / path)
            file = self._opened(path, start=position, place=place)
            file.last = now
            self._files.append(file)
        if not self._is_pattern and any(file.path != self._path for file in self._files):
            self._files += self._passed_over(known.values(), now)
        self._files.sort(key=FollowedFile.changed)
        if not found and not self._files:
            logger.warning(
                "%s: waits for %s, which is not there yet", self._context.name, self._path
            )

    def _passed_over(self, known: Collection[FileIdentity], now: float) -> Iterator[FollowedFile]:
        """Yield files that came and were renamed since the last checkpoint, while nothing ran."""
        folder = self._context.folder
        since = min(map(FollowedFile.changed, self._files))
        keys = {file.key for file in self._files}
        for path, status in _beside(folder / self._path):
            is_after = path.name.startswith(Path(self._path).name) and status.st_mtime_ns >= since
            if not is_after or key_of(status) in keys:
                continue
            if not any(identity.begins(path) for identity in known):
                file = self._opened(os.path.relpath(path, folder))
                file.last = now
                yield file

    def _locate(
        self, path: str, known: FileIdentity, paths: list[str], taken: set[Path]
    ) -> str | None:
        """Return where a file is now: as it was, under another name, restored, or as a copy."""
        folder = self._context.folder
        beside = [os.path.relpath(other, folder) for other, _ in _beside(folder / path)]
        ways = [
            (one, is_same)
            for is_same in (True, False)
            for one in dict.fromkeys([path, *paths, *beside])
        ]
        for one, is_same in ways:
            full = folder / one
            if full in taken or not full.is_file() or not known.begins(full):
                continue
            is_known = full.stat().st_ino == known.inode
            if is_known if is_same else known.size_bytes >= _TELLING_BYTES:
                return one
        return None


def _beside(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield the files of a folder that are named as if they had come of one of them."""
    try:
        entries = sorted(os.scandir(path.parent), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(path.stem) and entry.name != path.name and entry.is_file():
            yield Path(entry.path), entry.stat()

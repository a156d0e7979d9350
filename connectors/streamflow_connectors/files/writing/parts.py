"""The files of a sink that rotates them, has one for each value of a field, or shows whole ones only.

Theory of operation. Each folder has a `Track`: one file after the other, of which the last is being
written. A checkpoint's mark holds how far each track is, and which files are whole but have not got
their name yet, because the checkpoint that holds them was not safe:

    mark:   folder ""  number 3, 120 bytes      finished: scores-000002.jsonl
    disk:   scores-000001.jsonl                 has its name: an earlier checkpoint holds it
            scores-000002.jsonl.part            gets its name once this checkpoint is safe
            scores-000003.jsonl.part            cut back to 120 bytes by a run that goes on from here
            scores-000004.jsonl.part            removed by it

So whoever takes files as they appear sees each record once. Without checkpoints a file gets its
name as soon as it is whole, without ``atomic`` it has it from the start.
"""  # noqa: E501  # the title

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from streamflow.checkpoints.disk import make_folder, sync_folder
from streamflow.contracts import Context
from streamflow.records import Batch, Rejected, split_rejected
from streamflow_connectors.files.packing import UNFINISHED
from streamflow_connectors.files.writing.ends import cut_back, mark_of, other_files
from streamflow_connectors.files.writing.layout import FileLayout
from streamflow_connectors.files.writing.part import LinePart, Lines

if TYPE_CHECKING:
    from streamflow_connectors.files.writing.parquet_writer import ParquetPart, ParquetRows

Kind: TypeAlias = "Lines | ParquetRows"
"""What records become, and the files that hold them."""

Part: TypeAlias = "LinePart | ParquetPart"
"""A file that grows."""


@dataclass(slots=True)
class Track:
    """The files of one folder.

    Attributes:
        folder: Its name; empty for the one that the path names.
        number: Of the file that is being written.
        has_begun: Whether that one is there.
        is_taken_back: Whether it has its name, and is to lose it before more is written.
        size_bytes: Its length at the last mark.
        content_bytes: What its records take, unpacked.
        since: When its first record came.
        part: The file, if it is open.
        has_changed: Whether it has since the last mark.
    """

    folder: str
    number: int = 1
    has_begun: bool = False
    is_taken_back: bool = False
    size_bytes: int = 0
    content_bytes: int = 0
    since: float = 0.0
    part: Part | None = None
    has_changed: bool = False


class Parts:
    """Writes files; each call in a worker thread, one at a time.

    Args:
        layout: How they are called.
        make: Makes the kind of files from what an earlier run has told of their columns.
        context: Of the node.
        most_bytes: Content of a file after which the next one begins; None for any.
        most_seconds: Likewise the time since its first record.
        most_open: Files that may be open at once.
        is_appended: Whether what is there stays.
        now: The time.

    Raises:
        ConnectorError: A file is not as the checkpoint says.
        OSError: A file cannot be written.
        ValueError: A file that is to be continued is of another format.
    """

    def __init__(
        self,
        layout: FileLayout,
        make: Callable[[Any], Kind],
        context: Context,
        *,
        most_bytes: int | None = None,
        most_seconds: float | None = None,
        most_open: int = 64,
        is_appended: bool = False,
        now: float = 0.0,
    ) -> None:
        self._layout = layout
        self._context = context
        self._most_bytes = most_bytes
        self._most_seconds = most_seconds
        self._most_open = most_open
        self._tracks: dict[str, Track] = {}
        self._open: OrderedDict[str, Track] = OrderedDict()
        self._finished: list[str] = []
        self._num_writes = 0
        self._num_safe = -1 if context.is_checkpointed else None
        mark = mark_of(layout.path, context)
        self._kind = make(mark.get("fields") if mark else None)
        if mark:
            self._check(mark)
            self._go_on(mark, now)
        elif is_appended:
            self._take_over()
        else:
            self._begin_anew()
        if layout.is_alone and "" not in self._tracks:
            self._opened(self._tracks.setdefault("", Track("")), [])

    @property
    def is_timed(self) -> bool:
        """Whether files are finished because they are old."""
        return self._most_seconds is not None

    @property
    def next_due(self) -> float | None:
        """When the next file is old enough to be finished; None while there is none."""
        if self._most_seconds is None:
            return None
        begun = [track.since for track in self._tracks.values() if track.has_begun]
        return min(begun) + self._most_seconds if begun else None

    def take(self, batch: Batch, now: float) -> Rejected | None:
        """Write records, each to the file that its turn or its folder says.

        Raises:
            OSError: They cannot be written.
        """
        encoded = self._kind.encode(batch)
        folders, bad = self._layout.folders(batch)
        causes = {**bad, **encoded.causes}
        places = (index for index in range(len(batch)) if index not in encoded.causes)
        pairs = (
            (folders[index], payload)
            for index, payload in zip(places, encoded.payloads, strict=True)
            if index not in bad
        )
        self.finish_due(now)
        for folder, payloads in self._grouped(pairs):
            track = self._tracks.setdefault(folder, Track(folder))
            runs: Iterator[list[Any]] = self._kind.runs(payloads)
            for run in runs:
                if track.part is not None and not track.part.takes(run):
                    self._finish(track)
                self._write(track, run, now)
        return split_rejected(batch, causes)[1]

    def flush(self) -> None:
        """Let everything that was written be in the files."""
        for track in self._open.values():
            assert track.part is not None
            track.part.flush()

    def finish_due(self, now: float) -> None:
        """Finish the files that are old enough."""
        if (due := self.next_due) is None or due > now or self._most_seconds is None:
            return
        for track in list(self._tracks.values()):
            if track.has_begun and track.since + self._most_seconds <= now:
                self._finish(track)

    def mark(self, now: float) -> dict[str, Any]:
        """Put everything on disk, and return how far that is."""
        for track in list(self._open.values()):
            assert track.part is not None
            if not self._kind.goes_on:
                self._finish(track)
            elif track.has_changed:
                track.size_bytes = track.part.end()
                track.part.sync()
                track.has_changed = False
        mark: dict[str, Any] = {
            "path": self._layout.path,
            "layout": self._form(),
            "finished": list(self._finished),
            "tracks": {
                track.folder: [
                    track.number,
                    track.size_bytes if track.has_begun else None,
                    track.content_bytes,
                    now - track.since,
                ]
                for track in self._tracks.values()
            },
        }
        if fields := self._kind.fields:
            mark["fields"] = fields
        return mark

    def publication(self) -> Callable[[], None]:
        """Return what says that all is safe which is marked now, and gives whole files their names.

        To be called before anything is written after the mark.
        """
        names, num_writes = tuple(self._finished), self._num_writes

        def publish() -> None:
            self._num_safe = num_writes
            self._publish(names)

        return publish

    def end(self) -> None:
        """Finish all files, since the stream has ended or stops here."""
        for track in list(self._tracks.values()):
            if track.has_begun and not track.is_taken_back:
                self._close(track)
                if self._layout.is_atomic and self._num_safe in (None, self._num_writes):
                    self._show(self._layout.final(track.folder, track.number))

    def close(self) -> None:
        """Close the files as they are, so that they can be unpacked."""
        for track in list(self._open.values()):
            with suppress(OSError):  # the first error has been told
                self._close(track)

    def _check(self, mark: Mapping[str, Any]) -> None:
        """Raise ConnectorError unless a mark is of the same files."""
        if mark.get("layout") != self._form():
            raise other_files(self._context)

    def _form(self) -> list[Any]:
        layout = self._layout
        return [layout.is_numbered, layout.partition_by, layout.is_atomic]

    def _go_on(self, mark: Mapping[str, Any], now: float) -> None:
        """Bring the files back to a mark."""
        for name in mark["finished"]:
            self._show(name)
        for folder, (number, size_bytes, content_bytes, age) in mark["tracks"].items():
            track = self._tracks[folder] = Track(
                folder, number, content_bytes=content_bytes, since=now - age
            )
            if size_bytes is not None:
                track.has_begun, track.size_bytes = True, size_bytes
                self._cut_back(track)
        for folder, number, path in self._existing():
            known = self._tracks.get(folder)
            if known is None or number >= known.number + known.has_begun:
                path.unlink()

    def _cut_back(self, track: Track) -> None:
        """Cut a file back to its mark; one that had got its name at the end is taken as it is."""
        final = self._layout.final(track.folder, track.number)
        name = self._layout.unfinished(final)
        folder = self._context.folder
        if self._layout.is_atomic and not (folder / name).exists():
            whole = folder / final
            has_more = whole.exists() and whole.stat().st_size > track.size_bytes
            if self._layout.is_numbered and not has_more:
                self._next(track)  # whoever wanted it may have taken it away
                return
            name, track.is_taken_back = final, True
        cut_back(folder / name, {"path": name, "bytes": track.size_bytes}, self._context)

    def _take_over(self) -> None:
        """Leave what is there, and go on after it."""
        for folder, number, path in self._existing():
            track = self._tracks.setdefault(folder, Track(folder))
            is_unfinished = path.name.endswith(UNFINISHED)
            if self._layout.is_numbered:
                track.number = max(track.number, number + 1)
                if is_unfinished and self._kind.mend(path):  # a crash left it
                    self._show(self._layout.final(folder, number))
                continue
            track.has_begun = self._kind.mend(path)
            track.size_bytes = track.content_bytes = path.stat().st_size
            track.is_taken_back = self._layout.is_atomic and not is_unfinished

    def _begin_anew(self) -> None:
        """Remove what is there; a whole file stays until another one is to have its name."""
        for _, _, path in self._existing():
            is_replaced = self._layout.is_alone and self._layout.is_atomic
            if not is_replaced or path.name.endswith(UNFINISHED):
                path.unlink()

    def _existing(self) -> list[tuple[str, int, Path]]:
        return list(self._layout.existing(self._context.folder))

    def _grouped(self, pairs: Iterator[tuple[str, Any]]) -> Iterable[tuple[str, list[Any]]]:
        """Return payloads by folder, in order within each.

        Where closing a file finishes it, which one is closed is not to depend on the batch.
        """
        if not self._kind.goes_on:
            runs = groupby(pairs, itemgetter(0))
            return ((folder, [payload for _, payload in run]) for folder, run in runs)
        groups: dict[str, list[Any]] = {}
        for folder, payload in pairs:
            groups.setdefault(folder, []).append(payload)
        return groups.items()

    def _write(self, track: Track, payloads: list[Any], now: float) -> None:
        """Write payloads of one run, to as many files as that takes."""
        start = 0
        while start < len(payloads):
            stop = self._fitting(track, payloads, start)
            group = payloads[start:stop]
            part = self._opened(track, group)
            if not track.content_bytes:
                track.since = now
            part.write(group, is_first=not track.content_bytes)
            track.content_bytes += sum(map(self._kind.size_of, group))
            track.has_changed = True
            self._num_writes += 1
            if self._most_bytes is not None and track.content_bytes >= self._most_bytes:
                self._finish(track)
            start = stop

    def _fitting(self, track: Track, payloads: list[Any], start: int) -> int:
        """Return up to where payloads go to the file that is being written."""
        if self._most_bytes is None:
            return len(payloads)
        size = track.content_bytes
        for index in range(start, len(payloads)):
            size += self._kind.size_of(payloads[index])
            if size >= self._most_bytes:
                return index + 1
        return len(payloads)

    def _opened(self, track: Track, payloads: list[Any]) -> Part:
        """Return a track's file, open; of too many the one that was written longest ago closes."""
        if track.part is None:
            if len(self._open) == self._most_open:
                oldest = next(iter(self._open.values()))
                self._close(oldest) if self._kind.goes_on else self._finish(oldest)
            final = self._layout.final(track.folder, track.number)
            path = self._context.folder / self._layout.unfinished(final)
            if track.is_taken_back:
                (self._context.folder / final).rename(path)
                track.is_taken_back = False
            make_folder(path.parent)
            track.part = self._kind.opened(path, payloads, is_new=not track.has_begun)
            if self._context.is_checkpointed and not track.has_begun:
                sync_folder(path.parent)
            track.has_begun = True
        self._open[track.folder] = track
        self._open.move_to_end(track.folder)
        return track.part

    def _close(self, track: Track) -> None:
        """Close a track's file, if it is open, so that it is whole up to here."""
        self._open.pop(track.folder, None)
        part, track.part = track.part, None
        if part is None:
            return
        try:
            track.size_bytes, track.has_changed = part.end(), False
            if self._context.is_checkpointed or self._layout.is_atomic:
                part.sync()
        finally:
            part.close()

    def _finish(self, track: Track) -> None:
        """Let a track's file be whole, and the next record begin another one."""
        self._close(track)
        if self._layout.is_atomic:
            self._finished.append(self._layout.final(track.folder, track.number))
            if not self._context.is_checkpointed:
                self._publish(tuple(self._finished))
        self._next(track)

    def _next(self, track: Track) -> None:
        track.number += 1
        track.has_begun = track.has_changed = False
        track.size_bytes = track.content_bytes = 0

    def _publish(self, names: Sequence[str]) -> None:
        for name in names:
            self._show(name)
        self._finished = [name for name in self._finished if name not in names]

    def _show(self, name: str) -> None:
        """Give a file its name, unless it has it."""
        final = self._context.folder / name
        unfinished = self._context.folder / self._layout.unfinished(name)
        if unfinished.exists():
            os.replace(unfinished, final)
            sync_folder(final.parent)

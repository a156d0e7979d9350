"""What the files of a sink are called that writes several, or shows them only when they are whole.

path: out/scores.jsonl.gz                  out/scores.jsonl.gz
atomic: true                               out/scores.jsonl.gz.part, until it is whole
rotate: {size: 100MB}                      out/scores-000001.jsonl.gz, out/scores-000002.jsonl.gz, ...
partition_by: city                         out/city=Rome/scores.jsonl.gz, out/city=Oslo/scores.jsonl.gz, ...
"""  # noqa: E501  # columns of a table

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Final

from streamflow.records import MISSING, Batch, column_items
from streamflow_connectors.files.packing import UNFINISHED, without_packing

NOTHING: Final = "__HIVE_DEFAULT_PARTITION__"
"""What stands for no value in the name of a folder, as Hive and all who came after it write it."""

_MOST_BYTES: Final = 255
"""Of a name in a file system."""

_SPECIAL: Final = re.compile(r"[\x00-\x1f\x7f\"#%'*/:=?\\{\[\]^]")


@dataclass(frozen=True, slots=True)
class FileLayout:
    """How files are called.

    Attributes:
        path: As written in the graph.
        is_numbered: Whether there are several in a folder.
        partition_by: The field whose values have folders of their own.
        is_atomic: Whether a file has its name only when it is whole.
    """

    path: str
    is_numbered: bool = False
    partition_by: str | None = None
    is_atomic: bool = False

    @property
    def is_alone(self) -> bool:
        """Whether there is only one file."""
        return not self.is_numbered and self.partition_by is None

    def final(self, folder: str, number: int) -> str:
        """Return the path of a whole file; ``folder`` is empty without ``partition_by``."""
        parent = PurePath(self.path).parent
        return str(parent / folder / self._name(number))

    def unfinished(self, final: str) -> str:
        """Return the path of a file that is being written."""
        return f"{final}{UNFINISHED}" if self.is_atomic else final

    def existing(self, base: Path) -> Iterator[tuple[str, int, Path]]:
        """Yield folder, number and path of each file that is called so, whole or not."""
        parent = base / PurePath(self.path).parent
        folders = [parent]
        if self.partition_by is not None:
            prefix = _escaped(self.partition_by) + "="
            folders = [one for one in _entries(parent) if one.name.startswith(prefix)]
        for folder in folders:
            for path in _entries(folder):
                number = self._number(path.name)
                if number is not None and path.is_file():
                    yield "" if self.partition_by is None else folder.name, number, path

    def folders(self, batch: Batch) -> tuple[list[str], dict[int, str]]:
        """Return each record's folder, and the cause for each one that has none."""
        if self.partition_by is None:
            return [""] * len(batch), {}
        names: list[str] = []
        causes: dict[int, str] = {}
        for index, value in enumerate(column_items(batch.column(self.partition_by))):
            try:
                names.append(_folder(self.partition_by, value))
            except ValueError as error:
                names.append("")
                causes[index] = str(error)
        return names, causes

    def _name(self, number: int) -> str:
        stem, suffixes = self._parts()
        return f"{stem}-{number:06d}{suffixes}" if self.is_numbered else f"{stem}{suffixes}"

    def _number(self, name: str) -> int | None:
        """Return the number that a name has; None if it is none of ours."""
        name = name.removesuffix(UNFINISHED)
        if not self.is_numbered:
            return 1 if name == self._name(1) else None
        stem, suffixes = map(re.escape, self._parts())
        match = re.fullmatch(rf"{stem}-([0-9]{{6,}}){suffixes}", name)
        return int(match[1]) if match else None

    def _parts(self) -> tuple[str, str]:
        """Return a file's name before its suffixes, and these."""
        name = PurePath(self.path).name
        stem = PurePath(without_packing(name)).stem
        return stem, name.removeprefix(stem)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _folder(field: str, value: Any) -> str:
    """Return the folder of the records with a value.

    Raises:
        ValueError: There is none.
    """
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    if value is None or (isinstance(value, str) and not value):
        return f"{_escaped(field)}={NOTHING}"
    if not isinstance(value, str | int | float):
        found = "none" if value is MISSING else type(value).__name__
        message = f"expected text or a number in the field {field}, found {found}"
        raise ValueError(message)
    text = str(value).lower() if isinstance(value, bool) else str(value)
    folder = f"{_escaped(field)}={_escaped(text)}"
    if len(folder.encode()) > _MOST_BYTES:
        message = f"expected a value of {field} that a folder may be called by, found a longer one"
        raise ValueError(message)
    return folder


def _escaped(text: str) -> str:
    return _SPECIAL.sub(lambda match: f"%{ord(match[0]):02X}", text)

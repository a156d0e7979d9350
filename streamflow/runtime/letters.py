"""Dead letters read back from the file that a dead-letter sink has written."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import orjson

from streamflow.codecs.cells import read_rows
from streamflow.codecs.formats import CsvFormat, Format, MsgpackFormat
from streamflow.contracts import Context
from streamflow.nodes.declarations import Source
from streamflow.nodes.plugins import SOURCES, load
from streamflow.records import Batch, Headers
from streamflow.runtime.dead_letters import RetriedPartition

REQUIRED = ("original", "cause", "node", "attempts", "position", "time")
"""What every dead letter holds."""


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter.

    Attributes:
        number: Its place in the file, from 1.
        original: As it is written: bytes are base64 in text formats.
        cause: Why it was rejected.
        node: What rejected it.
        attempts: How often it has been tried.
        position: Where it stood in its source.
        time: When it was rejected.
        source: Name of its source.
        key: Of the record; so the following.
        is_text: Whether the file's format is one of text.
    """

    number: int
    original: Any
    cause: str
    node: str
    attempts: int
    position: Mapping[str, str | int]
    time: str
    source: str
    key: str | bytes | None
    timestamp_ms: int | None
    headers: Headers
    is_text: bool

    @property
    def payload(self) -> bytes | None:
        """The original's bytes; ``None`` if it is a value that came without."""
        if isinstance(self.original, bytes):
            return self.original
        if self.is_text and isinstance(self.original, str):
            with suppress(ValueError):  # then it is text that came without bytes
                return b64decode(self.original, validate=True)
        return None

    @property
    def partition(self) -> RetriedPartition:
        """Where the record stood."""
        *place, (unit, _) = self.position.items()
        return RetriedPartition(self.source, tuple(place), unit, attempts=self.attempts)

    @property
    def offset(self) -> int:
        """The record's position within its partition."""
        return int(list(self.position.values())[-1])


@dataclass(frozen=True, slots=True)
class Damaged:
    """What stands in the place of a dead letter and is none.

    Attributes:
        number: Its place in the file, from 1.
        cause: Why it is none.
    """

    number: int
    cause: str


@dataclass(frozen=True, slots=True)
class LetterFile:
    """A file of dead letters.

    Attributes:
        path: Where it lies.
        format: How it is written; ``None`` for what its suffix says.
    """

    path: Path
    format: Format | None = None

    @property
    def source(self) -> Source:
        """What reads it.

        Raises:
            GraphError: Its suffix does not say how it is written.
        """
        declared: Source = load(SOURCES, "file")(path=str(self.path), format=self.format)
        return declared

    async def batches(self) -> AsyncGenerator[list[Letter | Damaged]]:
        """Yield all letters in order, as many at once as are read at once.

        Raises:
            ConnectorError: The file cannot be read.
        """
        declared: Any = self.source
        layout: Format = declared.resolved_format
        async with declared.open(Context("dead letters")) as reader:
            while True:
                try:
                    fetch = await reader.receive()
                except anyio.EndOfStream:
                    return
                items = [
                    _letter(number, value, layout)
                    for number, value in zip(
                        fetch.batch.offsets, _values(fetch.batch, layout), strict=True
                    )
                ]
                if fetch.rejected:
                    numbers = fetch.rejected.batch.offsets
                    items += map(Damaged, numbers, fetch.rejected.causes)
                    items.sort(key=lambda item: item.number)
                yield items


def _values(batch: Batch, layout: Format) -> Sequence[Any]:
    """Return what each letter holds; cells of csv as the text that they are."""
    if not isinstance(layout, CsvFormat) or not isinstance(batch.values, dict):
        return batch.rows()
    assert batch.originals is not None
    names = list(batch.values)
    texts = [str(original, "utf-8") for original in batch.originals]
    dialect = {"delimiter": layout.delimiter, "quotechar": layout.quotechar}
    rows = read_rows(texts, num_fields=len(names), **dialect)
    return [_from_cells(dict(zip(names, row, strict=True))) for row in rows]


def _from_cells(cells: dict[str, str]) -> dict[str, Any]:
    """Return a letter whose cells are what JSON would hold."""
    value: dict[str, Any] = dict(cells)
    for name in ("attempts", "position", "timestamp_ms", "headers"):
        with suppress(orjson.JSONDecodeError):
            value[name] = orjson.loads(cells.get(name) or "null")
    value["key"] = cells.get("key") or None
    if cells.get("original", "").startswith(("{", "[")):  # no base64 does
        with suppress(orjson.JSONDecodeError):
            value["original"] = orjson.loads(cells["original"])
    return value


def _letter(number: int, value: Any, layout: Format) -> Letter | Damaged:
    if not isinstance(value, Mapping) or any(name not in value for name in REQUIRED):
        return Damaged(number, f"expected a dead letter with {', '.join(REQUIRED)}, found another")
    is_text = not isinstance(layout, MsgpackFormat)
    try:
        letter = Letter(
            number,
            value["original"],
            str(value["cause"]),
            str(value["node"]),
            int(value["attempts"]),
            dict(value["position"]),
            str(value["time"]),
            str(value.get("source") or ""),
            value.get("key"),
            value.get("timestamp_ms"),
            _headers(value.get("headers") or (), is_text),
            is_text,
        )
        _ = letter.offset, letter.partition
    except (TypeError, ValueError, IndexError) as error:
        return Damaged(number, f"expected a dead letter, found one that is damaged: {error}")
    return letter


def _headers(pairs: Sequence[Sequence[Any]], is_text: bool) -> Headers:
    return tuple(
        (str(name), b64decode(item, validate=True) if is_text else item) for name, item in pairs
    )

"""The first row of a csv file, which names its columns."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from streamflow.codecs.conversion import CsvCodec
from streamflow.codecs.formats import CsvFormat, Format
from streamflow.records import Batch
from streamflow_connectors.files.packing import UnpackedFile, packing_of


def has_header(declared: Format) -> bool:
    """Say whether a file's first row is not a record."""
    return isinstance(declared, CsvFormat) and declared.fields is None


def csv_codec(declared: Format, header: bytes) -> CsvCodec:
    """Return the codec of a csv file with this first row.

    Raises:
        ValueError: The row does not name each column once.
    """
    assert isinstance(declared, CsvFormat)
    text = header.decode("utf-8-sig")
    try:
        [fields] = csv.reader([text], delimiter=declared.delimiter, quotechar=declared.quotechar)
    except csv.Error as error:
        raise ValueError(str(error)) from error
    if not all(fields) or len(set(fields)) < len(fields):
        message = f"a first row that does not name each column once: {text.strip()}"
        raise ValueError(message)
    return codec_of(declared, fields)


def codec_of(declared: Format, fields: Sequence[str]) -> CsvCodec:
    """Return the codec of a csv file with these columns."""
    assert isinstance(declared, CsvFormat)
    return CsvCodec(fields, delimiter=declared.delimiter, quotechar=declared.quotechar)


def read_header(path: Path, declared: Format) -> bytes | None:
    """Return the first row of a csv file that is to be continued; None if it has none.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged.
    """
    if not path.is_file() or not path.stat().st_size:
        return None
    splitter = declared.splitter()
    for data in _content(path):
        if rows := splitter.split(data):
            return rows[0]
    return next(iter(splitter.end()), None)


def _content(path: Path) -> Iterator[bytes]:
    if packing := packing_of(path):
        yield from UnpackedFile(path, packing)
        return
    with path.open("rb") as file:
        yield from iter(partial(file.read, 2**16), b"")


def fields_of(batch: Batch) -> list[str]:
    """Return the fields of the first record that has any, which become those of the file."""
    if isinstance(batch.values, dict):
        return list(batch.values)
    mappings = (value for value in batch.values if isinstance(value, Mapping))
    return list(map(str, next(filter(None, mappings), {})))

"""What files get of records: payloads, and the row that names the columns of a csv file."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from streamflow.codecs.conversion import CsvCodec
from streamflow.codecs.formats import Format
from streamflow.contracts import Codec, Context, Encoded
from streamflow.errors import ConnectorError
from streamflow.records import Batch
from streamflow_connectors.files.headers import codec_of, fields_of, has_header


class FileEncoder:
    """Encodes records for files of one format.

    The columns of csv files with a header are those of the first record that has any.

    Args:
        declared: The format.
        fields: The columns of a csv file that is continued.
    """

    def __init__(self, declared: Format, fields: Sequence[str] | None = None) -> None:
        self._format = declared
        self._codec: Codec | None = None
        if not has_header(declared):
            self._codec = declared.line_codec()
        elif fields:
            self._codec = codec_of(declared, fields)

    @property
    def fields(self) -> list[str] | None:
        """The columns that a header names; None if there is none, or none yet."""
        if has_header(self._format) and isinstance(self._codec, CsvCodec):
            return list(self._codec.fields)
        return None

    @property
    def header(self) -> bytes:
        """What a file begins with."""
        if has_header(self._format) and isinstance(self._codec, CsvCodec):
            return self._codec.header() + self._format.terminator
        return b""

    def encode(self, batch: Batch) -> Encoded:
        """Return the payloads of a batch, and why a record has none."""
        if self._codec is None:
            named = codec_of(self._format, fields_of(batch))
            if not named.fields:  # every record is rejected, and the next may name them
                return named.encode(batch)
            self._codec = named
        return self._codec.encode(batch)


def cannot_write(context: Context, path: str, error: Exception) -> ConnectorError:
    """Return what to raise when a file cannot be written."""
    found = getattr(error, "strerror", None) or str(error)
    if isinstance(error, BrokenPipeError) or getattr(error, "errno", None) == errno.ENXIO:
        found = "nobody reads it; start its reader first, and keep it running"
    return ConnectorError(f"{context.name}: expected to write {path}, found {found}")

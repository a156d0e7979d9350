"""Parquet as a format of files: columns that are packed within, read and written by pyarrow.

Here is the declaration; what reads and writes imports the library, in `parquet_reader` and
`parquet_writer`.
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from streamflow.codecs.formats import Format
from streamflow.codecs.framing import Splitter
from streamflow.contracts import Codec

REQUIRES: Final = {"pyarrow": "streamflow-online[parquet]"}


class ParquetFormat(Format):
    """Parquet: whole files of columns; not for single messages.

    When read, times become text as in ISO 8601, and decimal numbers become numbers. When written,
    the columns are the fields of the first record that has any; numbers, text, bytes, lists of
    numbers and nothing stay what they are, all else becomes JSON.
    """

    compression: Literal["zstd", "snappy", "gzip", "none"] = Field(
        "zstd", description="How written columns are packed."
    )
    row_group: int = Field(
        10_000, ge=1, description="Rows that are gathered in memory and then written together."
    )

    def codec(self) -> Codec:
        """Refuse.

        Raises:
            ValueError: A record alone has no columns.
        """
        message = (
            "expected a format of single records, found parquet, which is one of whole files; "
            "choose another"
        )
        raise ValueError(message)

    def splitter(self) -> Splitter:
        """Refuse.

        Raises:
            ValueError: A file is no run of records.
        """
        message = "expected a format of records that follow one another, found parquet"
        raise ValueError(message)

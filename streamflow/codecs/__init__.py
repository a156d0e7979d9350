"""Formats: how bytes become values and values bytes, whole batches at a time."""

from streamflow.codecs.conversion import CsvCodec, decode, encode
from streamflow.codecs.formats import (
    CsvFormat,
    FileFormatField,
    Format,
    FormatField,
    JsonFormat,
    MsgpackFormat,
    RawFormat,
    named_format,
)
from streamflow.contracts import Codec, Decoded, Encoded

__all__ = [
    "Codec",
    "CsvCodec",
    "CsvFormat",
    "Decoded",
    "Encoded",
    "FileFormatField",
    "Format",
    "FormatField",
    "JsonFormat",
    "MsgpackFormat",
    "RawFormat",
    "decode",
    "encode",
    "named_format",
]

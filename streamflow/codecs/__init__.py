"""Formats: how bytes become values and values bytes, whole batches at a time."""

from streamflow.codecs.formats import (
    Codec,
    CsvCodec,
    CsvFormat,
    Decoded,
    Encoded,
    FileFormatField,
    Format,
    FormatField,
    JsonFormat,
    MsgpackFormat,
    RawFormat,
    decode,
    encode,
    named_format,
)

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

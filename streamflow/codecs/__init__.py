"""Formats: how bytes become values and values bytes, whole batches at a time."""

from streamflow.codecs.conversion import CsvCodec as CsvCodec
from streamflow.codecs.conversion import decode as decode
from streamflow.codecs.conversion import encode as encode
from streamflow.codecs.formats import CsvFormat as CsvFormat
from streamflow.codecs.formats import FileFormatField as FileFormatField
from streamflow.codecs.formats import Format as Format
from streamflow.codecs.formats import FormatField as FormatField
from streamflow.codecs.formats import JsonFormat as JsonFormat
from streamflow.codecs.formats import MsgpackFormat as MsgpackFormat
from streamflow.codecs.formats import RawFormat as RawFormat
from streamflow.codecs.formats import named_format as named_format
from streamflow.contracts import Codec as Codec
from streamflow.contracts import Decoded as Decoded
from streamflow.contracts import Encoded as Encoded

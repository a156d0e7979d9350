"""Files, and standard input and output: csv, json lines, msgpack, plain or packed."""

from streamflow_connectors.files.sink import FileSink
from streamflow_connectors.files.source import FileSource

__all__ = ["FileSink", "FileSource"]

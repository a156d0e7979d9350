"""Server-sent events, and pages that are asked for again and again."""

from streamflow_connectors.http.nodes import HttpSource

__all__ = [
    "HttpSource",
]

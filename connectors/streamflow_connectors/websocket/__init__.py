"""WebSockets as sources and sinks."""

from streamflow_connectors.websocket.nodes import WebSocketSink, WebSocketSource

__all__ = [
    "WebSocketSink",
    "WebSocketSource",
]

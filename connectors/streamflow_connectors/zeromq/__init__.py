"""ZeroMQ sockets as sources and sinks."""

from streamflow_connectors.zeromq.nodes import ZeroMqSink, ZeroMqSource

__all__ = [
    "ZeroMqSink",
    "ZeroMqSource",
]

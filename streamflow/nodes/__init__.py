"""What a node is as data: its declaration, and what declarations are made of."""

from streamflow.nodes.declarations import (
    Buffer,
    Declaration,
    Node,
    Operator,
    Overflow,
    Receiver,
    Sink,
    Source,
    Surroundings,
    node_of,
)

__all__ = [
    "Buffer",
    "Declaration",
    "Node",
    "Operator",
    "Overflow",
    "Receiver",
    "Sink",
    "Source",
    "Surroundings",
    "node_of",
]

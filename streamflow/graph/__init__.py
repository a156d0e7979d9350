"""What is connected to what, as frozen data; `Graph` besides has the way to a run."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from streamflow.graph.graph import (
    TIME,
    Checkpoints,
    FailureBudget,
    GraphDeclaration,
    Settings,
    Start,
)
from streamflow.graph.structure import NAME, SECTIONS, Inputs, Outputs, structure_problems

if TYPE_CHECKING:
    from streamflow.dataflow import Graph

__all__ = [
    "NAME",
    "SECTIONS",
    "TIME",
    "Checkpoints",
    "FailureBudget",
    "Graph",
    "GraphDeclaration",
    "Inputs",
    "Outputs",
    "Settings",
    "Start",
    "structure_problems",
]


def __getattr__(name: str) -> Any:
    """Import `Graph` when it is first used: what it is made of lies above this folder."""
    if name != "Graph":
        message = f"module 'streamflow.graph' has no attribute {name!r}"
        raise AttributeError(message)
    return import_module("streamflow.dataflow").Graph

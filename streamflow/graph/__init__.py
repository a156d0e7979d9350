"""What is connected to what, as frozen data; `Graph` besides has the way to a run."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from streamflow.graph.graph import TIME as TIME
from streamflow.graph.graph import Checkpoints as Checkpoints
from streamflow.graph.graph import FailureBudget as FailureBudget
from streamflow.graph.graph import GraphDeclaration as GraphDeclaration
from streamflow.graph.graph import Settings as Settings
from streamflow.graph.graph import Start as Start
from streamflow.graph.structure import NAME as NAME
from streamflow.graph.structure import SECTIONS as SECTIONS
from streamflow.graph.structure import Inputs as Inputs
from streamflow.graph.structure import Outputs as Outputs
from streamflow.graph.structure import structure_problems as structure_problems

if TYPE_CHECKING:
    from streamflow.dataflow import Graph as Graph


def __getattr__(name: str) -> Any:
    """Import `Graph` when it is first used: what it is made of lies above this folder."""
    if name != "Graph":
        message = f"module 'streamflow.graph' has no attribute {name!r}"
        raise AttributeError(message)
    return import_module("streamflow.dataflow").Graph

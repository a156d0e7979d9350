"""What is connected to what, as frozen data."""

from streamflow.graph.graph import (
    NAME,
    SECTIONS,
    TIME,
    Checkpoints,
    FailureBudget,
    Graph,
    Inputs,
    Outputs,
    Settings,
    Start,
    structure_problems,
)

__all__ = [
    "NAME",
    "SECTIONS",
    "TIME",
    "Checkpoints",
    "FailureBudget",
    "Graph",
    "Inputs",
    "Outputs",
    "Settings",
    "Start",
    "structure_problems",
]

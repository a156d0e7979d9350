"""Learn from live streams: an asyncio dataflow framework around a pipelined PyTorch network."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from streamflow.distribution import warn_of_stranger

if TYPE_CHECKING:
    from streamflow.dataflow import Graph
    from streamflow.errors import GraphError, Problem, StreamflowError
    from streamflow.models.model import Model
    from streamflow.records import Batch, Record

__all__ = ["Batch", "Graph", "GraphError", "Model", "Problem", "Record", "StreamflowError"]

_MODULES = {
    "Batch": "streamflow.records",
    "Graph": "streamflow.dataflow",
    "GraphError": "streamflow.errors",
    "Model": "streamflow.models.model",
    "Problem": "streamflow.errors",
    "Record": "streamflow.records",
    "StreamflowError": "streamflow.errors",
}

warn_of_stranger(__path__[0])


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that each wing can be used alone."""
    if name not in _MODULES:
        message = f"module 'streamflow' has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__

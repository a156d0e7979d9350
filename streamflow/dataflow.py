"""The door from a declared graph to its file and to a run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Self

from streamflow.config.reader import read_graph
from streamflow.config.writer import write_graph
from streamflow.graph.graph import GraphDeclaration, Start
from streamflow.runtime.run import Run, open_run


class Graph(GraphDeclaration):
    """A declared dataflow: sources, operators, models and sinks, connected by ``inputs``.

    Making one checks its structure; nothing is imported, opened or built.

    Raises:
        GraphError: With every problem that was found.
    """

    @classmethod
    def from_yaml(cls, path: str | Path, *, overrides: Mapping[str, str] | None = None) -> Self:
        """Read a graph from a YAML file.

        Args:
            path: The file. Relative paths within it start at its folder.
            overrides: Values, as YAML text, that replace those of the file, by dotted path:
                ``{"models.m.optimizer.SGD.lr": "0.1"}``.

        Raises:
            GraphError: With every problem of the file, each with its line and column.
        """
        return read_graph(cls, Path(path), overrides=overrides or {})

    def to_yaml(self) -> str:
        """Return the graph as YAML that `from_yaml` reads back as an equal graph.

        Raises:
            GraphError: Something in it cannot be written, such as a lambda or an iterator.
        """
        return write_graph(self)

    def open(
        self, *, start: Start | None = None, instance: str = "0"
    ) -> AbstractAsyncContextManager[Run]:
        """Start the graph, inside any asyncio or anyio application.

        With ``checkpoint`` it goes on where its newest checkpoint says, unless ``start`` says
        otherwise, as ``instance``.

        Leaving the block stops the run and waits for what is in flight, at most
        ``shutdown_timeout`` seconds; leaving it with an exception abandons what is in flight.
        No signal handler is installed, and no task or thread is left behind.

        Raises:
            GraphError: The graph cannot run (found before anything is opened).
            StreamflowError: A node could not be opened.
        """
        return open_run(self, start=start or Start(), instance=instance)

"""Reading a graph for a command, with every problem explained."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from streamflow.dataflow import Graph
from streamflow.errors import GraphError, Problem


def read_or_explain(
    file: Path, overrides: Sequence[str], *, deep: bool, as_json: bool
) -> Graph | None:
    """Return the graph, or print what is wrong with it: as lines on stderr, as JSON on stdout."""
    try:
        graph = Graph.from_yaml(file, overrides=_parsed(overrides))
        if deep and (problems := graph.deep_problems()):
            raise GraphError(problems)
    except GraphError as error:
        _explain(error, as_json=as_json)
        return None
    return graph


def _parsed(overrides: Sequence[str]) -> dict[str, str]:
    """Return the values of ``--set PATH=VALUE`` by path.

    Raises:
        GraphError: One has no equals sign.
    """
    pairs = [override.partition("=") for override in overrides]
    problems = [
        Problem((f"--set {path}",), "expected PATH=VALUE, found no equals sign; write path=value")
        for path, equals, _ in pairs
        if not equals
    ]
    if problems:
        raise GraphError(problems)
    return {path: value for path, _, value in pairs}


def _explain(error: GraphError, *, as_json: bool) -> None:
    if as_json:
        data = {"valid": False, "problems": [str(problem) for problem in error.problems]}
        sys.stdout.write(json.dumps(data) + "\n")
    sys.stderr.write(f"{error}\n")

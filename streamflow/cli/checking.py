"""``streamflow validate``, and reading a graph for any command, with every problem explained."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from streamflow.cli import exit_codes
from streamflow.cli.parameters import GraphFile, Json, Overrides
from streamflow.dataflow import Graph
from streamflow.errors import GraphError, Problem


def validate(
    file: GraphFile,
    *,
    deep: Annotated[
        bool, Parameter(negative=(), help="Also import callables and build the networks.")
    ] = False,
    overrides: Overrides = (),
    as_json: Json = False,
) -> int:
    """Check a graph and print everything that is wrong with it; return the exit code."""
    graph = read_or_explain(file, overrides, deep=deep, as_json=as_json)
    if graph is None:
        return exit_codes.BAD_CONFIGURATION
    promises = graph.promises()
    if as_json:
        delivery = [asdict(promise) for promise in promises]
        data = {"valid": True, "problems": [], "delivery": delivery}
        sys.stdout.write(json.dumps(data) + "\n")
    else:
        nodes = sum(1 for _ in graph.nodes())
        sys.stdout.write(f"{file}: valid, {nodes} nodes\n")
        sys.stdout.writelines(f"{promise}\n" for promise in promises)
    return 0


def read_or_explain(
    file: Path, overrides: Sequence[str], *, deep: bool = False, as_json: bool = False
) -> Graph | None:
    """Return the graph, or print what is wrong with it: as lines on stderr, as JSON on stdout."""
    try:
        graph = Graph.from_yaml(file, overrides=_parsed(overrides))
    except GraphError as error:
        _explain(error, as_json=as_json)
        return None
    if deep and (problems := graph.deep_problems()):
        _explain(GraphError(problems), as_json=as_json)
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

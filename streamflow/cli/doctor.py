"""``streamflow doctor``: what this machine has, what is missing, and what to do about it."""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from streamflow import distribution
from streamflow.cli import exit_codes
from streamflow.cli.checking import read_or_explain
from streamflow.cli.extensions import extensions
from streamflow.cli.finding import Finding
from streamflow.cli.parameters import Json, Overrides
from streamflow.config.catalog import entries
from streamflow.dataflow import Graph
from streamflow.errors import Problem

CONNECT_SECONDS = 3.0


def doctor(
    file: Annotated[Path | None, Parameter(help="A graph whose needs to look at, too.")] = None,
    *,
    overrides: Overrides = (),
    as_json: Json = False,
) -> int:
    """Look at the machine, and at what a graph needs; return the exit code."""
    declared = None
    if file is not None:
        declared = read_or_explain(file, overrides, as_json=as_json)
        if declared is None:
            return exit_codes.BAD_CONFIGURATION
    return examine(declared, as_json=as_json)


def examine(graph: Graph | None, *, as_json: bool) -> int:
    """Look at the machine, and at what ``graph`` needs; print what was found.

    Returns:
        The exit code: 1 if the graph lacks something.
    """
    findings = list(_findings(graph))
    if as_json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings]) + "\n")
    else:
        _print(findings)
    is_lacking = any(finding.cure and finding.is_needed for finding in findings)
    return exit_codes.FAILED if is_lacking else 0


def _findings(graph: Graph | None) -> Iterator[Finding]:
    yield from _software()
    torch = _torch(graph)
    yield torch
    yield from _packages()
    yield from extensions()
    yield _cores()
    if torch.cure:
        if graph is not None:
            yield from _connections(graph)
            yield from _told(graph, _problems_without_torch(graph))
        return
    from streamflow.cli import toolchain  # which imports torch
    from streamflow.pipeline.torch_private import why_eager  # likewise

    compiling = toolchain.compilation()
    yield from toolchain.hardware()
    yield from compiling
    yield from toolchain.private_names()
    if graph is not None:
        yield from _connections(graph)
        problems = graph.deep_problems()
        yield from _told(graph, problems)
        lacking = [f"{one.subject} {one.found}" for one in compiling if one.cure]
        cannot = lacking[0] if lacking else why_eager()
        yield from toolchain.learning(graph, problems, cannot)


def _software() -> Iterator[Finding]:
    yield _streamflow()
    yield Finding("python", f"{platform.python_version()} on {platform.platform(terse=True)}")
    if find_spec("aiokafka"):
        yield Finding("aiokafka", version("aiokafka"))


def _streamflow() -> Finding:
    """Return what is installed of this package, and whether another project's lies over it."""
    try:
        found = version(distribution.NAME)
    except PackageNotFoundError:
        found = f"not installed as {distribution.NAME}, so that its types of nodes are not found"
        return Finding("streamflow", found, f"run: pip install {distribution.NAME}")
    stranger = distribution.stranger_in(os.path.dirname(distribution.__file__))
    what, _, cure = (stranger or "").partition("; ")
    return Finding("streamflow", f"{found}; {what}" if what else found, cure)


def _torch(graph: Graph | None) -> Finding:
    """Return whether torch can be imported, without which no model can learn or predict."""
    is_needed = graph is not None and bool(graph.models)
    cure = "install it (pip install torch): no model works without"
    if find_spec("torch") is None:
        return Finding("torch", "not there", cure, is_needed=is_needed)
    try:
        import_module("torch")
    except Exception as error:  # libraries that it loads may be missing
        found = f"does not import: {type(error).__name__}: {error}"
        return Finding("torch", found, cure, is_needed=is_needed)
    return Finding("torch", version("torch"), is_needed=is_needed)


def _packages() -> Iterator[Finding]:
    """Yield what types of node lack, once for each package."""
    lacking = {message: entry for entry in entries() for message in entry.missing}
    for message, entry in lacking.items():
        what, _, found = message.removeprefix("expected ").partition(", found it is ")
        found, _, cure = found.partition("; ")
        yield Finding(f"{entry.name}: {what}", found, cure)


def _cores() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Finding("processor cores", f"{cores} for this process")


def _told(graph: Graph, problems: Sequence[Problem]) -> Iterator[Finding]:
    for problem in problems:
        yield Finding(str(graph.folder), str(problem), "see the message", is_needed=True)


def _problems_without_torch(graph: Graph) -> list[Problem]:
    """Return what is wrong with callables, but for those of networks."""
    return graph.locate(
        [
            problem.within(section, name)
            for section, name, node in graph.nodes()
            if section != "models"
            for problem in node.deep_problems(graph.folder)
        ]
    )


def _connections(graph: Graph) -> Iterator[Finding]:
    """Yield whether what the graph connects to answers."""
    for _, name, node in graph.nodes():
        for address in node.addresses:
            yield _connection(name, address)


def _connection(name: str, address: str) -> Finding:
    host, _, port = address.rpartition(":")
    subject = f"{name}: {address}"
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        cure = "start it, or correct the address or the firewall"
        return Finding(subject, f"does not answer: {error}", cure, is_needed=True)
    return Finding(subject, "answers", is_needed=True)


def _print(findings: list[Finding]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in findings:
        mark = Text("!", style="bold red") if finding.cure else Text("+", style="green")
        found = f"{finding.found}; {finding.cure}" if finding.cure else finding.found
        table.add_row(mark, Text(finding.subject), Text(found))
    Console().print(table)

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

from rich.console import Console
from rich.table import Table
from rich.text import Text

from streamflow import distribution
from streamflow.cli import exit_codes
from streamflow.cli.finding import Finding
from streamflow.cli.toolchain import compilation, extensions
from streamflow.config.catalog import entries
from streamflow.errors import Problem
from streamflow.graph.graph import Graph
from streamflow.models.declaration import Model

CONNECT_SECONDS = 3.0


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
    compiling = [] if torch.cure else compilation()
    if not torch.cure:
        yield from _hardware()
        yield from compiling
    if graph is not None:
        yield from _connections(graph)
        problems = _problems(graph, has_torch=not torch.cure)
        for problem in problems:
            yield Finding(str(graph.folder), str(problem), "see the message", is_needed=True)
        if not torch.cure:
            cannot = next((f"{one.subject} {one.found}" for one in compiling if one.cure), "")
            yield from _models(graph, problems, cannot)


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


def _hardware() -> Iterator[Finding]:
    import torch

    yield Finding("torch's threads", str(torch.get_num_threads()))
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    yield Finding("GPUs", ", ".join(gpus) or "none: networks run on the processor")


def _problems(graph: Graph, *, has_torch: bool) -> list[Problem]:
    """Return what is wrong with callables and networks, of which torch knows."""
    if has_torch:
        return graph.deep_problems()
    return graph.locate(
        [
            problem.within(section, name)
            for section, name, node in graph.nodes()
            if section != "models"
            for problem in node.deep_problems(graph.folder)
        ]
    )


def _models(graph: Graph, problems: Sequence[Problem], cannot: str) -> Iterator[Finding]:
    """Yield how each model that can be built would learn.

    Args:
        graph: The graph.
        problems: What is wrong with it.
        cannot: Why nothing can be compiled here, if that is so.
    """
    wrong = {problem.location[1] for problem in problems if problem.location[0] == "models"}
    for name, model in graph.models.items():
        if name not in wrong:
            yield _learning(name, model, graph.folder, cannot)


def _learning(name: str, model: Model, folder: Path, cannot: str) -> Finding:
    """Return how a model would learn."""
    from streamflow.cli.learning import why_learned_eagerly
    from streamflow.models.shapes import ShapeError

    subject = f"{name}: learning"
    try:
        reason = why_learned_eagerly(model, folder) or cannot
    except ShapeError as error:
        what = str(error).partition("; ")[0]
        return Finding(subject, f"not known before the first record: {what}")
    except Exception as error:  # a network may refuse a record in any way
        return Finding(subject, f"does not learn a random record: {error}", "see the message")
    return Finding(subject, f"eager: {reason}" if reason else "compiled")


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

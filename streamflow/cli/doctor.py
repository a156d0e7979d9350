"""``streamflow doctor``: what this machine has, what is missing, and what to do about it."""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec

from rich.console import Console
from rich.table import Table
from rich.text import Text

from streamflow.cli import exit_codes
from streamflow.config.catalog import entries
from streamflow.graph import Graph

CONNECT_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: What it is.
        found: What is there.
        cure: What to do; empty if all is well.
        is_needed: Whether a graph that was named cannot run without it.
    """

    subject: str
    found: str
    cure: str = ""
    is_needed: bool = False


def examine(graph: Graph | None, *, as_json: bool) -> int:
    """Look at the machine, and at what ``graph`` needs; print what was found.

    Returns:
        The exit code: 1 if the graph lacks something.
    """
    findings = [*_software(), *_packages(), *_hardware()]
    if graph is not None:
        findings += _needs(graph)
    if as_json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings]) + "\n")
    else:
        _print(findings)
    is_lacking = any(finding.cure and finding.is_needed for finding in findings)
    return exit_codes.FAILED if is_lacking else 0


def _software() -> Iterator[Finding]:
    yield Finding("streamflow", version("streamflow"))
    yield Finding("python", f"{platform.python_version()} on {platform.platform(terse=True)}")
    for package in ("torch", "aiokafka"):
        if find_spec(package):
            yield Finding(package, version(package))


def _packages() -> Iterator[Finding]:
    """Yield what types of node lack, once for each package."""
    lacking = {message: entry for entry in entries() for message in entry.missing}
    for message, entry in lacking.items():
        what, _, found = message.removeprefix("expected ").partition(", found it is ")
        found, _, cure = found.partition("; ")
        yield Finding(f"{entry.name}: {what}", found, cure)
    if find_spec("aiokafka"):
        if find_spec("aiokafka.record._crecords"):
            yield Finding("aiokafka's C extension", "there")
        else:
            cure = "install an aiokafka wheel for this Python: reading is ten times slower without"
            yield Finding("aiokafka's C extension", "not there", cure)


def _hardware() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("processor cores", f"{cores} for this process")
    if find_spec("torch") is None:
        return
    import torch

    from streamflow.pipeline.inductor import find_compiler

    yield Finding("torch's threads", str(torch.get_num_threads()))
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    yield Finding("GPUs", ", ".join(gpus) or "none: networks run on the processor")
    compiler = find_compiler()
    if compiler:
        yield Finding("C++ compiler", compiler)
    else:
        cure = "install one (apt install g++), so that networks are compiled and not run eagerly"
        yield Finding("C++ compiler", "not there", cure)


def _needs(graph: Graph) -> Iterator[Finding]:
    """Yield whether what the graph connects to answers, and what is wrong with its networks."""
    for _, name, node in graph.nodes():
        for address in node.addresses:
            yield _connection(name, address)
    for problem in graph.deep_problems():
        yield Finding(str(graph.folder), str(problem), "see the message", is_needed=True)


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

"""``streamflow list``, ``describe`` and ``schema``: what there is to declare."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from streamflow.cli import exit_codes
from streamflow.cli.parameters import Json
from streamflow.config.catalog import Entry, entries
from streamflow.config.schema import schema_text
from streamflow.errors import suggestion


def list_types(*, as_json: Json = False) -> int:
    """Print every installed type with a line about it; return the exit code."""
    found = list(entries())
    if as_json:
        rows = [{key: asdict(entry)[key] for key in ("kind", "name", "summary")} for entry in found]
        sys.stdout.write(json.dumps(rows) + "\n")
        return 0
    table = Table(box=None, pad_edge=False)
    for title in ("kind", "type", ""):
        table.add_column(title, no_wrap=bool(title))
    for entry in found:
        lacking = f" ({entry.missing[0].partition('; ')[2]})" if entry.missing else ""
        table.add_row(entry.kind, entry.name, Text(entry.summary + lacking))
    Console().print(table)
    return 0


def describe(
    name: Annotated[
        str, Parameter(name="TYPE", help="A name that streamflow list shows; or source.kafka.")
    ],
    /,
    *,
    as_json: Json = False,
) -> int:
    """Print all about the types of a name; return the exit code."""
    everything = list(entries())
    found = [item for item in everything if name in (item.name, f"{item.kind}.{item.name}")]
    if not found:
        known = sorted({entry.name for entry in everything})
        message = f"expected the name of a type, found {name}; {suggestion(name, known)}"
        sys.stderr.write(f"{message}, or run streamflow list\n")
        return exit_codes.USAGE
    if as_json:
        sys.stdout.write(json.dumps([asdict(entry) for entry in found]) + "\n")
    else:
        _print(found)
    return 0


def schema() -> int:
    """Print the JSON Schema of graph files; return the exit code."""
    sys.stdout.write(schema_text())
    return 0


def _print(found: Sequence[Entry]) -> None:
    console = Console()
    for entry in found:
        article = "an" if entry.kind == "operator" else "a"
        console.print(Text(f"{entry.name}, {article} {entry.kind}", style="bold"))
        for paragraph in (entry.summary, *entry.details, *entry.missing):
            console.print(Text(paragraph))
        if entry.options:
            table = Table("option", "value", "default", "")
            for option in entry.options:
                default = "required" if option.default is None else option.default
                cells = (option.name, option.type, default, option.description)
                table.add_row(*map(Text, cells))
            console.print(table)
        console.print()

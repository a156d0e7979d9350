"""``streamflow graph`` and ``config show``: what a graph is, drawn or written out."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from cyclopts import Parameter

from streamflow.cli import exit_codes
from streamflow.cli.checking import read_or_explain
from streamflow.cli.parameters import GraphFile, Overrides
from streamflow.config.schema import SCHEMA_LINE
from streamflow.observe import drawing

DRAW = {"text": drawing.as_text, "mermaid": drawing.as_mermaid, "svg": drawing.as_svg}


def graph(
    file: GraphFile,
    *,
    overrides: Overrides = (),
    form: Annotated[
        Literal["text", "mermaid", "svg"], Parameter(name="--format", help="How to draw it.")
    ] = "text",
) -> int:
    """Draw a graph; return the exit code."""
    declared = read_or_explain(file, overrides)
    if declared is None:
        return exit_codes.BAD_CONFIGURATION
    sys.stdout.write(DRAW[form](declared))
    return 0


def show(file: GraphFile, *, overrides: Overrides = ()) -> int:
    """Print a graph as it will run; return the exit code."""
    declared = read_or_explain(file, overrides)
    if declared is None:
        return exit_codes.BAD_CONFIGURATION
    sys.stdout.write(SCHEMA_LINE + declared.to_yaml())
    return 0

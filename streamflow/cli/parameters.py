"""Parameters that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

GraphFile = Annotated[Path, Parameter(help="The graph, a YAML file.")]
Overrides = Annotated[
    tuple[str, ...],
    Parameter(
        name="--set",
        negative=(),
        help="Replace a value: models.m.optimizer.SGD.lr=0.1. May be given several times.",
    ),
]
Json = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON on stdout.")]
Shape = Annotated[
    str | None, Parameter(help="Shape of an input where nothing else tells it: 3,32,32.")
]

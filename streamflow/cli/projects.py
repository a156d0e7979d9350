"""``streamflow new``: a folder with a graph, data to try it on, and a test."""

from __future__ import annotations

import csv
import math
import random
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from streamflow.cli import exit_codes
from streamflow.codecs.cells import read_cell
from streamflow.config.schema import SCHEMA_LINE, write_schema
from streamflow.dataflow import Graph
from streamflow.errors import GraphError, StreamflowError, suggestion
from streamflow.models.feature import Feature, Gaps
from streamflow.models.model import Model
from streamflow.nodes.plugins import OPERATORS, SINKS, SOURCES, load

MOST_ROWS = 100_000
"""How many rows of a file are looked at."""

MOST_CLASSES = 50
MOST_LISTED = 12
BUCKETS = 32

Task = Literal["regression", "classification"]


class ProjectError(StreamflowError, ValueError):
    """A project cannot be made of this."""


@dataclass(frozen=True, slots=True)
class Field:
    """What the values of a column have in common.

    Attributes:
        name: Of the column.
        kind: What all its values are that there are.
        values: All different ones, in order.
        has_gaps: Whether a value is missing.
    """

    name: str
    kind: Literal["number", "time", "text"]
    values: tuple[Any, ...]
    has_gaps: bool


def new(
    folder: Annotated[Path, Parameter(help="Folder to write, new or empty.")],
    *,
    name: Annotated[
        str | None, Parameter(help="Name of the graph; else that of the folder.")
    ] = None,
    data: Annotated[
        Path | None, Parameter(help="A csv file of yours with a header; else a sample is made.")
    ] = None,
    target: Annotated[
        str | None, Parameter(help="The column to predict; else the last one.")
    ] = None,
    task: Annotated[
        Task | None, Parameter(help="What the column is; else found from its values.")
    ] = None,
) -> int:
    """Write a project, and ask on a terminal for what is not given; return the exit code."""
    try:
        if data is None and (answer := _ask("csv file with your data, or empty for a sample")):
            data = Path(answer)
        if data is not None and target is None:
            target = _ask("column to predict, or empty for the last") or None
        new_project(folder, name=name, data=data, target=target, task=task)
    except ProjectError as error:
        sys.stderr.write(f"{error}\n")
        return exit_codes.USAGE
    sys.stdout.write(
        f"{folder}: wrote graph.yaml, readings.csv, test_graph.py and streamflow.schema.json\n"
        f"next: streamflow run {folder / 'graph.yaml'}\n"
    )
    return 0


def new_project(
    folder: Path, *, name: str | None, data: Path | None, target: str | None, task: Task | None
) -> None:
    """Write a project; the graph predicts a column of its data from the others.

    Args:
        folder: Where to; new or empty.
        name: Of the graph; by default that of the folder.
        data: A csv file with a header, which is copied; a sample is made without one.
        target: The column to predict; by default the last.
        task: What it is; by default found from its values.

    Raises:
        ProjectError: The folder is not empty, or nothing can be learned from the file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        message = f"{folder}: expected a new folder, found one in use; choose another name"
        raise ProjectError(message)
    header, rows = _sample() if data is None else _table(data)
    fields = [
        _field(name, column) for name, column in zip(header, zip(*rows, strict=True), strict=True)
    ]
    graph = _graph(name or folder.resolve().name, fields, target or header[-1], task)
    folder.mkdir(parents=True, exist_ok=True)
    if data is None:
        with (folder / "readings.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *rows])
    else:
        shutil.copyfile(data, folder / "readings.csv")
    commented = SCHEMA_LINE + _commented(graph.to_yaml())
    (folder / "graph.yaml").write_text(commented, encoding="utf-8")
    (folder / "test_graph.py").write_text(TEST, encoding="utf-8")
    write_schema(folder)


def _ask(question: str) -> str:
    """Return what the user answers on a terminal; nothing where there is none."""
    if not sys.stdin.isatty():
        return ""
    sys.stderr.write(f"{question}: ")
    sys.stderr.flush()
    return sys.stdin.readline().strip()


def _sample() -> tuple[list[str], list[list[Any]]]:
    """Return made-up readings of a machine, whose load depends on all else."""
    draw = random.Random(0)
    rows: list[list[Any]] = []
    for number in range(2000):
        time = datetime.fromtimestamp(1_735_689_600 + 600 * number, UTC)
        speed, site = round(draw.uniform(800, 1200), 1), draw.choice(["north", "south"])
        warmth = round(40 + 8 * math.sin(2 * math.pi * time.hour / 24) + draw.gauss(0, 2), 2)
        load = 0.05 * speed + 0.4 * warmth + 6 * (site == "north") + draw.gauss(0, 1)
        rows.append([time.isoformat(), site, speed, warmth, round(load, 2)])
    return ["time", "site", "speed", "temperature", "load"], rows


def _table(path: Path) -> tuple[list[str], list[list[Any]]]:
    """Return header and values of a csv file."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, *rows = islice(csv.reader(file), MOST_ROWS + 1)
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        message = f"{path}: expected a csv file with a header, found none ({error}); check the path"
        raise ProjectError(message) from error
    whole = [[read_cell(cell) for cell in row] for row in rows if len(row) == len(header)]
    if len(header) < 2 or not whole or len(set(header)) < len(header):
        message = (
            f"{path}: expected a header of two or more columns and rows as long, found "
            f"{len(header)} columns and {len(whole)} rows; give another file"
        )
        raise ProjectError(message)
    return header, whole


def _field(name: str, column: Iterable[Any]) -> Field:
    values = list(column)
    there = [value for value in values if value is not None]
    has_gaps = len(there) < len(values)
    kind: Literal["number", "time", "text"] = "text"
    if all(isinstance(value, int | float) for value in there):
        kind = "number"
    elif all(map(_is_time, there)):
        kind = "time"
    different = sorted(set(there), key=lambda value: (isinstance(value, str), value))
    return Field(name, kind, tuple(different), has_gaps)


def _is_time(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(datetime.fromisoformat(value))
    except ValueError:
        return False


def _graph(name: str, fields: Sequence[Field], target: str, task: Task | None) -> Graph:
    """Return the graph that predicts one of the fields from the others."""
    known = {field.name: field for field in fields}
    if target not in known:
        message = f"expected a column of the file to predict, found {target}; "
        raise ProjectError(message + suggestion(target, list(known)))
    given = [field for field in fields if field.name != target]
    scaled = [field.name for field in given if field.kind == "number" and not field.has_gaps]
    features = [_feature(field) for field in given]
    width = sum(one.width or 1 for one in features)
    options, outputs = _of_target(known[target], task)
    scaling = {"type": "standardize", "inputs": ["readings"], "fields": scaled}
    try:
        model = Model(
            inputs=("scaled" if scaled else "readings",),
            features=tuple(map(_short, features)),
            network=({"Linear": [width, 32]}, "ReLU", {"Linear": [32, outputs]}),
            target=target,
            optimizer={"SGD": {"lr": 0.02}},
            **options,
        )
        return Graph(
            name=name,
            sources={"readings": load(SOURCES, "file")(path="readings.csv")},
            operators={"scaled": load(OPERATORS, "standardize")(**scaling)} if scaled else {},
            models={"model": model},
            sinks={"predictions": load(SINKS, "file")(inputs=("model",), path="predictions.jsonl")},
        )
    except GraphError as error:  # a column may be called what no field can be
        raise ProjectError(str(error)) from error


def _feature(field: Field) -> Feature:
    """Return how a column becomes numbers."""
    nan: Gaps | None = "impute" if field.has_gaps else None
    if field.kind == "time":
        return Feature(field=field.name, parts=("hour", "weekday"), nan=nan)
    if field.kind == "number":
        return Feature(field=field.name, nan=nan)
    if len(field.values) <= MOST_LISTED:
        return Feature(field=field.name, categories=field.values, other=True, nan=nan)
    return Feature(field=field.name, hash=BUCKETS, nan=nan)


def _short(feature: Feature) -> Feature | str:
    """Return a feature as one would write it: its name alone where that says it all."""
    is_plain = feature.width is None and feature.nan is None
    return feature.field if is_plain and feature.field else feature


def _of_target(field: Field, task: Task | None) -> tuple[dict[str, Any], int]:
    """Return the options of a model that predicts a column, and how many outputs it has."""
    is_number = field.kind == "number"
    if task is None:
        task = "regression" if is_number and field.values != (0, 1) else "classification"
    if task == "regression" and is_number:
        return {"standardize_target": True}, 1
    if task == "regression" or not 2 <= len(field.values) <= MOST_CLASSES:
        expected = "numbers" if task == "regression" else f"2 to {MOST_CLASSES} different values"
        found = "text" if task == "regression" else len(field.values)
        message = f"expected {expected} in {field.name} to predict, found {found}; "
        raise ProjectError(message + "choose another column with --target")
    return {"task": "classification", "classes": field.values}, len(field.values)


COMMENTS: Mapping[str, str] = {
    "version:": "Check it: streamflow validate graph.yaml --deep; run it: "
    "streamflow run graph.yaml",
    "sources:": "Where records come from. For a Kafka topic instead:\n"
    '  readings: {type: kafka, bootstrap_servers: "localhost:9092", topics: [t], group: g}',
    "operators:": "What happens to them on their way. Columns of different ranges learn badly.",
    "models:": "Each record is predicted, the prediction is scored, then the network learns it.",
    "    features:": "How fields become the network's input; see `streamflow describe feature`.",
    "    network:": "Layers of torch.nn; the first takes as many inputs as the features make.",
    "    optimizer:": "The number to try first: too small learns slowly, too large not at all.",
    "sinks:": "Where predictions go.",
}
"""What stands above a line of the graph."""

END = """
# Where records go that cannot be used, with the reason:
# dead_letter: {type: file, path: dead.jsonl}
# Keep what is learned, so that a later run goes on from there:
# checkpoint: {path: state, every: 30s}
"""


def _commented(text: str) -> str:
    """Return a graph's text with a word about each part."""
    lines: list[str] = []
    for line in text.splitlines():
        indent = line[: len(line) - len(line.lstrip())]
        comment = COMMENTS.get(f"{indent}{line.split()[0]}", "")
        lines += [*(f"{indent}# {part}" for part in comment.splitlines()), line]
    return "\n".join(lines) + "\n" + END


TEST = '''"""The graph runs on its readings, and predicts each; run me with pytest."""

from pathlib import Path

import anyio

from streamflow import Graph

GRAPH = Path(__file__).with_name("graph.yaml")


def test_every_reading_is_predicted(tmp_path):
    out = tmp_path / "predictions.jsonl"
    changes = {"sinks.predictions.path": str(out), "models.model.compile": "false"}
    graph = Graph.from_yaml(GRAPH, overrides=changes)
    assert graph.deep_problems() == []

    async def run():
        async with graph.open() as opened:
            await opened.wait()
        return opened.stats()

    stats = anyio.run(run)
    assert stats.rejected == 0
    assert stats.delivered == stats.received == len(out.read_text().splitlines()) > 0
'''
"""The written test."""

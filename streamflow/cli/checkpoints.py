"""``streamflow checkpoint``: look at checkpoints, check and compare them, take weights out."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from streamflow.checkpoints import Checkpoint, difference, folder_of, reading
from streamflow.checkpoints.comparison import Change, compare, outline
from streamflow.checkpoints.tensors import Header
from streamflow.checkpoints.weights import save_weights, weights_of
from streamflow.cli import exit_codes
from streamflow.cli.parameters import Json
from streamflow.dataflow import Graph
from streamflow.errors import CheckpointError, GraphError, Problem, StreamflowError, suggestion
from streamflow.records import show_place

YAML = (".yaml", ".yml")

Folder = Annotated[Path, Parameter(help="The folder of the checkpoints, or the graph's YAML file.")]
One = Annotated[
    Path,
    Parameter(
        help="A checkpoint (PATH/00000007), or where they lie (their folder, or the graph's YAML "
        "file): then the newest one."
    ),
]
Instance = Annotated[
    str, Parameter(help="Which instance of the graph, where its path says {instance}.")
]

app = App(name="checkpoint", help="Look at checkpoints, check and compare them.")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command prints.

    Attributes:
        data: With ``--json``.
        lines: Without.
        exit_code: What it exits with.
    """

    data: Mapping[str, Any]
    lines: Sequence[str] = field(default_factory=list)
    exit_code: int = 0


@app.command(name="list")
def list_(path: Folder, *, instance: Instance = "0", as_json: Json = False) -> int:
    """List the checkpoints, oldest first, and check each of them.

    Example: streamflow checkpoint list graph.yaml
    """
    return _print(lambda: _list(_located(path, instance)), as_json=as_json)


@app.command
def show(path: One, *, instance: Instance = "0", as_json: Json = False) -> int:
    """Show what a checkpoint holds: positions, tensors with their shapes, counters.

    Example: streamflow checkpoint show checkpoints/00000007
    """
    return _print(lambda: _show(_one(path, instance)), as_json=as_json)


@app.command
def diff(one: One, other: One, *, instance: Instance = "0", as_json: Json = False) -> int:
    """Show what changed from one checkpoint to another.

    Example: streamflow checkpoint diff checkpoints/00000006 checkpoints/00000007
    """
    return _print(lambda: _diff(_one(one, instance), _one(other, instance)), as_json=as_json)


@app.command
def verify(path: Folder, *, instance: Instance = "0", as_json: Json = False) -> int:
    """Compare all files of a checkpoint, or of all in a folder, with their checksums.

    Exits with 1 if one is damaged, or there is none.

    Example: streamflow checkpoint verify checkpoints
    """
    return _print(lambda: _verify(_located(path, instance)), as_json=as_json)


@app.command
def export(
    path: One,
    *,
    output: Annotated[Path, Parameter(help="File to write; one that is there is replaced.")],
    model: Annotated[
        str | None, Parameter(help="Name of the model; needed where there are several.")
    ] = None,
    instance: Instance = "0",
    as_json: Json = False,
) -> int:
    """Write a model's weights as a state_dict in safetensors.

    A PyTorch script takes it with load_state_dict(safetensors.torch.load_file(...)), and a graph
    with the option weights.

    Example: streamflow checkpoint export checkpoints --model m --output weights.safetensors
    """
    return _print(lambda: _export(_one(path, instance), model, output), as_json=as_json)


def _print(answer: Callable[[], Answer], *, as_json: bool) -> int:
    """Print what a command found, or why it could not; return the exit code."""
    try:
        found = answer()
    except StreamflowError as error:
        if as_json:
            sys.stdout.write(json.dumps({"error": str(error)}) + "\n")
        sys.stderr.write(f"{error}\n")
        is_graph = isinstance(error, GraphError)
        return exit_codes.BAD_CONFIGURATION if is_graph else exit_codes.FAILED
    text = [json.dumps(found.data, allow_nan=False)] if as_json else found.lines
    sys.stdout.write("".join(f"{line}\n" for line in text))
    return found.exit_code


def _located(path: Path, instance: str) -> Path:
    """Return the folder that a path or a graph means.

    Raises:
        CheckpointError: There is none.
        GraphError: The graph cannot be read, or takes no checkpoints.
    """
    if path.is_dir():
        return path
    if not path.exists() and path.suffix not in YAML:
        message = (
            f"{path}: expected a folder of checkpoints, a checkpoint or a graph file, found "
            f"nothing; check the path"
        )
        raise CheckpointError(message)
    graph = Graph.from_yaml(path)
    if graph.checkpoint is None:
        message = "expected a graph with checkpoints, found one without; declare checkpoint"
        raise GraphError(graph.locate([Problem(("checkpoint",), message)]))
    return folder_of(graph.checkpoint.path, folder=graph.folder, instance=instance)


def _one(path: Path, instance: str) -> Checkpoint:
    """Return the checkpoint that is meant; of several, the newest that is whole.

    Raises:
        CheckpointError: There is none, or it is damaged.
        GraphError: The graph cannot be read, or takes no checkpoints.
    """
    folder = _located(path, instance)
    if not reading.is_checkpoint(folder):
        found = reading.newest(folder)
        if found is None:
            message = f"{folder}: expected checkpoints, found none; run the graph first"
            raise CheckpointError(message)
        return found
    found, damage = reading.examine(folder)
    if found is None or damage:
        message = f"{damage}; choose another one"
        raise CheckpointError(message)
    return found


def _list(folder: Path) -> Answer:
    rows = [_row(path) for path in _paths(folder)]
    table = [
        (
            row["name"],
            row["time"] or "",
            "" if row["records"] is None else f"{row['records']:,} records",
            "" if row["size_bytes"] is None else f"{row['size_bytes']:,} bytes",
            "ok" if row["ok"] else f"damaged: {row['problem']}",
        )
        for row in rows
    ]
    lines = _aligned(table) if rows else [f"{folder}: no checkpoints"]
    return Answer({"path": str(folder), "checkpoints": rows}, lines)


def _verify(folder: Path) -> Answer:
    rows = [_row(path) for path in _paths(folder)]
    if not rows:
        message = f"{folder}: expected checkpoints, found none; run the graph first"
        raise CheckpointError(message)
    is_whole = all(row["ok"] for row in rows)
    lines = [
        f"{row['name']}: ok" if row["ok"] else f"{row['name']}: damaged: {row['problem']}"
        for row in rows
    ]
    data = {"path": str(folder), "ok": is_whole, "checkpoints": rows}
    return Answer(data, lines, 0 if is_whole else exit_codes.FAILED)


def _paths(folder: Path) -> list[Path]:

    if reading.is_checkpoint(folder):
        return [folder]
    return [folder / name for name in reading.names(folder)]


def _row(path: Path) -> dict[str, Any]:
    """Return what a table says about a checkpoint, whole or not."""
    try:
        found, problem = reading.examine(path)
    except CheckpointError as error:
        found, problem = None, str(error)
    row: dict[str, Any] = {"name": path.name, "time": None, "records": None, "size_bytes": None}
    if found is not None:
        row |= {
            "time": _time(found),
            "records": sum(found.manifest.records.values()),
            "size_bytes": found.size_bytes,
        }
    return row | {"ok": not problem, "problem": problem or None}


def _show(found: Checkpoint) -> Answer:

    manifest = found.manifest
    nodes = {node: list(outline("", found.outline(node))) for node in manifest.states}
    heading = (
        f"{found.path}: {manifest.identity.name}, {sum(manifest.records.values()):,} records, "
        f"{_time(found)}, {found.size_bytes:,} bytes"
    )
    lines = [heading]
    for source, count in manifest.records.items():
        lines.append(f"{source}: {count:,} records")
        positions = manifest.positions.get(source, {})
        lines += _aligned([(f"  {show_place(place)}", str(at)) for place, at in positions.items()])
    for node, parts in nodes.items():
        lines.append(f"{node}:")
        lines += _aligned([(f"  {path}", str(value)) for path, value in parts])
    for sink, mark in manifest.marks.items():
        lines.append(f"{sink}:")
        lines += _aligned([(f"  {key}", str(value)) for key, value in mark.items()])
    data = {
        "path": str(found.path),
        "graph": manifest.identity.name,
        "hash": manifest.identity.hash,
        "time": _time(found),
        "size_bytes": found.size_bytes,
        "records": dict(manifest.records),
        "positions": {
            source: [{"partition": dict(place), "position": at} for place, at in places.items()]
            for source, places in manifest.positions.items()
        },
        "states": {
            node: {
                "tensors": {
                    path: {"dtype": value.dtype, "shape": list(value.shape)}
                    for path, value in parts
                    if isinstance(value, Header)
                },
                "values": {
                    path: _plain(value) for path, value in parts if not isinstance(value, Header)
                },
            }
            for node, parts in nodes.items()
        },
        "marks": {
            sink: {key: _plain(value) for key, value in mark.items()}
            for sink, mark in manifest.marks.items()
        },
    }
    return Answer(data, lines)


def _diff(one: Checkpoint, other: Checkpoint) -> Answer:

    found = compare(one, other)
    graphs = [
        str(problem) for problem in difference(one.manifest.identity, other.manifest.identity)
    ]
    changes = [*found.positions, *found.states, *found.marks]
    lines = [*graphs, *map(str, changes), f"{found.num_same:,} other values are the same"]
    data = {
        "one": str(one.path),
        "other": str(other.path),
        "graph": graphs,
        "positions": [_change(change) for change in found.positions],
        "states": [_change(change) for change in found.states],
        "marks": [_change(change) for change in found.marks],
        "same": found.num_same,
    }
    return Answer(data, lines)


def _change(change: Change) -> dict[str, Any]:
    row = {"path": change.path, "before": change.before, "after": change.after}
    if change.max_difference is None:
        return row
    return row | {"max_difference": _plain(change.max_difference)}


def _export(found: Checkpoint, model: str | None, output: Path) -> Answer:

    models = [node for node in found.manifest.states if weights_of(found.outline(node))]
    if model is None and len(models) == 1:
        model = models[0]
    if model not in models:
        cure = suggestion(model or "", models)
        message = f"{found.path}: expected the name of a model, found {model or 'none'}; {cure}"
        raise CheckpointError(message)
    weights = weights_of(found.state(model))
    save_weights(weights, output)
    lines = [f"{output}: {len(weights):,} tensors of {model} in {found.path}"]
    data = {
        "path": str(found.path),
        "model": model,
        "output": str(output),
        "tensors": sorted(weights),
    }
    return Answer(data, lines)


def _time(found: Checkpoint) -> str:
    return found.manifest.time.isoformat(sep=" ", timespec="seconds")


def _plain(value: Any) -> Any:
    """Return a value as strict JSON holds it: as it is, or as text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    is_finite = isinstance(value, float) and math.isfinite(value)
    return float(value) if is_finite else str(value)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines whose columns stand below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]

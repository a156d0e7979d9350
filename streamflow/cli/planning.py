"""``streamflow plan``: what to expect of a graph's models on this machine, opening nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from streamflow.cli import exit_codes
from streamflow.cli.checking import read_or_explain
from streamflow.cli.parameters import GraphFile, Json, Overrides, Shape
from streamflow.dataflow import Graph
from streamflow.errors import StreamflowError, suggestion
from streamflow.models.model import Model
from streamflow.models.network import build_network
from streamflow.models.options import pipeline_options
from streamflow.models.shapes import ShapeError, fitted_head, random_inputs
from streamflow.pipeline import Pipeline
from streamflow.pipeline.planning.plan import Plan


class ArgumentError(StreamflowError, ValueError):
    """Arguments of the command line that do not fit the graph."""


def plan(
    file: GraphFile,
    *,
    model: Annotated[str | None, Parameter(help="Plan this model only.")] = None,
    overrides: Overrides = (),
    shape: Shape = None,
    svg: Annotated[Path | None, Parameter(help="Draw the plan into this file.")] = None,
    as_json: Json = False,
) -> int:
    """Measure the models of a graph and print their plans; return the exit code."""
    try:
        sizes = parsed_shape(shape)
    except ArgumentError as error:
        sys.stderr.write(f"{error}\n")
        return exit_codes.USAGE
    graph = read_or_explain(file, overrides, deep=True, as_json=as_json)
    if graph is None:
        return exit_codes.BAD_CONFIGURATION
    plans: dict[str, Plan] = {}
    where, failure, code = "", None, 0
    try:
        alone = [*(["--shape"] if sizes else []), *(["--svg"] if svg else [])]
        for name in chosen_models(graph, model, alone):
            where = f"{name}: "
            plans[name] = _plan(graph.models[name], graph.folder, sizes)
            if svg is not None:
                svg.write_text(plans[name].svg(), encoding="utf-8")
    except (StreamflowError, OSError) as error:
        failure = f"{where}{error}"
        code = (
            exit_codes.USAGE if isinstance(error, ArgumentError | ShapeError) else exit_codes.FAILED
        )
        sys.stderr.write(f"failed: {failure}\n")
    _print(graph, plans, failure, as_json=as_json)
    return code


def parsed_shape(text: str | None) -> tuple[int, ...] | None:
    """Return the shape that is written ``3,32,32``.

    Raises:
        ArgumentError: It is none.
    """
    if text is None:
        return None
    try:
        sizes = tuple(map(int, text.split(",")))
    except ValueError:
        sizes = (0,)
    if min(sizes) < 1:
        message = f"--shape: expected sizes like 3,32,32, got {text}; correct it"
        raise ArgumentError(message)
    return sizes


def chosen_models(graph: Graph, model: str | None, alone: Sequence[str]) -> list[str]:
    """Return the names of the models that a command is about.

    Args:
        graph: The graph.
        model: The only one that is asked for.
        alone: Options that were given and mean one model.

    Raises:
        ArgumentError: There is no such model, or there are several.
    """
    names = list(graph.models)
    if model is not None:
        if model not in names:
            message = f"--model: expected a model of the graph, got {model}; "
            raise ArgumentError(message + suggestion(model, names))
        return [model]
    if not names:
        message = "expected a graph with a model, got none; declare one under models"
        raise ArgumentError(message)
    if alone and len(names) > 1:
        message = f"expected one model for {' and '.join(alone)}, got {len(names)}; add --model"
        raise ArgumentError(message)
    return names


def _plan(model: Model, folder: Path, asked: Sequence[int] | None) -> Plan:
    """Measure a model with one record of standard-normal features.

    Raises:
        StreamflowError: It cannot be measured.
    """
    network = build_network(model, folder)
    inputs = random_inputs(model, network, asked)
    head = fitted_head(model, folder, inputs)
    target = head.stack(head.encode([None])[0])
    with Pipeline(network, **pipeline_options(model, folder)) as pipeline:
        return pipeline.plan(inputs, target if model.learn and model.target else None)


def _print(graph: Graph, plans: dict[str, Plan], failure: str | None, *, as_json: bool) -> None:
    if as_json:
        data = {name: plan.to_dict() for name, plan in plans.items()}
        report = {"graph": graph.name, "plans": data, "failure": failure}
        sys.stdout.write(json.dumps(report) + "\n")
        return
    parts = [f"{name}: {plan}\n" for name, plan in plans.items()]
    sys.stdout.write("\n".join(parts))

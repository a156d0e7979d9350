"""``streamflow plan``: what to expect of a graph's models on this machine, opening nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from streamflow.cli import exit_codes
from streamflow.dataflow import Graph
from streamflow.errors import StreamflowError, suggestion
from streamflow.models.declaration import Model
from streamflow.models.network import build_network
from streamflow.models.options import pipeline_options
from streamflow.models.shapes import ShapeError, fitted_head, random_inputs
from streamflow.pipeline import Pipeline
from streamflow.pipeline.planning.plan import Plan

Shape = Sequence[int]


class ArgumentError(StreamflowError, ValueError):
    """Arguments of the command line that do not fit the graph."""


def plan_graph(
    graph: Graph,
    *,
    model: str | None = None,
    shape: Shape | None = None,
    svg: Path | None = None,
    as_json: bool = False,
) -> int:
    """Measure the models of a graph and print their plans.

    Args:
        graph: The graph.
        model: The only model to plan; all by default.
        shape: Shape of a record's input, where the declaration does not tell it.
        svg: Where to draw the plan.
        as_json: Print JSON on stdout.

    Returns:
        The exit code.
    """
    plans: dict[str, Plan] = {}
    where, failure, code = "", None, 0
    try:
        alone = [*(["--shape"] if shape else []), *(["--svg"] if svg else [])]
        for name in chosen_models(graph, model, alone):
            where = f"{name}: "
            plans[name] = _plan(graph.models[name], graph.folder, shape)
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


def _plan(model: Model, folder: Path, asked: Shape | None) -> Plan:
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

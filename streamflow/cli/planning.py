"""``streamflow plan``: what to expect of a graph's models on this machine, opening nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from streamflow.cli import exit_codes
from streamflow.errors import StreamflowError, suggestion
from streamflow.graph import Graph
from streamflow.models.declaration import Model
from streamflow.models.network import build_network
from streamflow.models.options import pipeline_options
from streamflow.models.shapes import ShapeError, fitted_head, random_inputs
from streamflow.pipeline import Pipeline
from streamflow.pipeline.plan import Plan

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
        for name in _chosen(graph, model, needs_one=svg is not None or shape is not None):
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


def parsed_shape(text: str) -> tuple[int, ...]:
    """Return the shape that is written ``3,32,32``.

    Raises:
        ValueError: It is none.
    """
    sizes = tuple(map(int, text.split(",")))
    if min(sizes) < 1:
        message = f"expected sizes from 1, got {text}"
        raise ValueError(message)
    return sizes


def _chosen(graph: Graph, model: str | None, *, needs_one: bool) -> list[str]:
    names = list(graph.models)
    if model is not None:
        if model not in names:
            message = f"--model: expected a model of the graph, got {model}; "
            raise ArgumentError(message + suggestion(model, names))
        return [model]
    if not names:
        message = "expected a graph with a model, got none; declare one under models"
        raise ArgumentError(message)
    if needs_one and len(names) > 1:
        message = f"expected one model for --shape and --svg, got {len(names)}; add --model"
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

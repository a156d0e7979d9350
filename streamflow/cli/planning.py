"""``streamflow plan``: what to expect of a graph's models on this machine, opening nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from streamflow.cli import exit_codes
from streamflow.errors import StreamflowError, suggestion
from streamflow.graph import Graph
from streamflow.models.declaration import Model
from streamflow.models.heads import make_head, one_tensor
from streamflow.models.network import build_network
from streamflow.models.options import pipeline_options
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
        code = exit_codes.USAGE if isinstance(error, ArgumentError) else exit_codes.FAILED
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


def _width(network: nn.Module) -> int | None:
    """Return how many numbers the first layer takes, if that is all that it takes."""
    first = next((part for part in network.modules() if not list(part.children())), None)
    if isinstance(first, nn.Linear):
        return first.in_features
    return first.input_size if isinstance(first, nn.RNNCellBase) else None


def _plan(model: Model, folder: Path, asked: Shape | None) -> Plan:
    """Measure a model with one record of standard-normal features.

    Raises:
        StreamflowError: It cannot be measured.
    """
    network = build_network(model, folder)
    shape = asked or _shape(model, network)
    inputs = torch.randn(1, *shape, generator=torch.Generator().manual_seed(model.seed))
    target = _target(model, folder, inputs)
    with Pipeline(network, **pipeline_options(model, folder)) as pipeline:
        return pipeline.plan(inputs, target if model.learn and model.target else None)


def _shape(model: Model, network: nn.Module) -> Shape:
    """Return the shape of a record's input, as the first layer or else the features tell it."""
    width = _width(network)
    if width is not None:
        return (width,)
    if isinstance(model.features, str):
        message = (
            f"expected the shape of {model.features}, which neither the graph nor the first layer "
            "tells, got none; pass it, as in --shape 3,32,32"
        )
        raise ArgumentError(message)
    return (len(model.features),)


def _target(model: Model, folder: Path, inputs: Tensor) -> Tensor:
    """Return a target as the loss takes it: zero, or the first class."""
    network = build_network(model, folder)  # one of its own, as it is to predict here
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = network.eval()(inputs)
    except Exception as error:  # a network may refuse a shape in any way
        message = (
            f"expected a network that takes features of shape {list(inputs.shape[1:])}, got "
            f"{error}; pass their shape, as in --shape 3,32,32"
        )
        raise ArgumentError(message) from error
    head = make_head(model)
    head.fit(one_tensor(output))
    return head.stack([None])


def _print(graph: Graph, plans: dict[str, Plan], failure: str | None, *, as_json: bool) -> None:
    if as_json:
        data = {name: plan.to_dict() for name, plan in plans.items()}
        report = {"graph": graph.name, "plans": data, "failure": failure}
        sys.stdout.write(json.dumps(report) + "\n")
        return
    parts = [f"{name}: {plan}\n" for name, plan in plans.items()]
    sys.stdout.write("\n".join(parts))

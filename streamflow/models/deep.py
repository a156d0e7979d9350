"""Deep checks of a model: what is only found by building its network, on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from streamflow.errors import GraphError, Problem, StreamflowError
from streamflow.evaluation.river import REQUIRES, RiverScores
from streamflow.models.declaration import ModelOptions
from streamflow.models.heads import ClassHead, make_head, one_tensor
from streamflow.models.network import (
    build_loss,
    build_network,
    build_optimizer,
    build_scheduler,
)
from streamflow.models.options import pipeline_options
from streamflow.models.reaction import first_weights
from streamflow.models.weighting import Weighting
from streamflow.nodes.callables import CallableError
from streamflow.nodes.plugins import missing_packages
from streamflow.pipeline.checks import takes_target
from streamflow.pipeline.running.assembly import check_options


def model_problems(model: ModelOptions, folder: Path, *, only_scalars: bool) -> Iterator[Problem]:
    """Yield what is wrong with a model's network, loss, optimizer, stages, features and weights."""
    found: list[Problem] = []
    network = _attempt(found, "network", lambda: _meta_network(model, folder))
    if network is not None:
        _attempt(found, "on_drift", lambda: first_weights(model, network))
    loss = _attempt(found, "loss", lambda: build_loss(model, folder))
    if loss is not None and takes_target(loss) != (model.target is not None):
        found.append(_loss_problem(model))
    _attempt(found, "optimizer", lambda: build_optimizer(model, folder))
    _attempt(found, "scheduler", lambda: build_scheduler(model, folder))
    if missing := missing_packages(REQUIRES if model.metrics or model.drift else {}):
        found.append(Problem(("metrics" if model.metrics else "drift",), missing[0]))
    else:
        task = model.resolved_task or ""
        _attempt(
            found, "metrics", lambda: RiverScores(task, model.classes, model.metrics, model.drift)
        )
    if model.weights is not None and not (folder / model.weights).is_file():
        message = f"expected a file of weights, found none at {folder / model.weights}"
        found.append(Problem(("weights",), f"{message}; check the path"))
    if network is not None:
        found += _fit_problems(model, network, only_scalars=only_scalars)
    yield from found
    if network is None or found:
        return
    try:
        check_options(network, **pipeline_options(model, folder))
    except StreamflowError as error:
        where, _, message = str(error).partition(": ")
        yield _problem((where,), message)


def _loss_problem(model: ModelOptions) -> Problem:
    """Return what is wrong where a loss and the declared target do not go together."""
    if model.target is None:
        message = "expected a loss of the output alone, as there is no target, found one of both"
        return Problem(("loss",), f"{message}; name the target")
    message = "expected a loss of (output, target), found one of the output alone"
    return Problem(("loss",), f"{message}; remove the target, or change the loss")


def _meta_network(model: ModelOptions, folder: Path) -> nn.Module:
    """Build the network on the meta device; a callable that computes with values, for real."""
    try:
        with torch.device("meta"):
            return build_network(model, folder)
    except (NotImplementedError, RuntimeError):
        if isinstance(model.network, tuple):
            raise
        return build_network(model, folder)


def _attempt(found: list[Problem], option: str, build: Callable[[], Any]) -> Any:
    """Return what ``build`` returns, or take note of why it does not."""
    try:
        return build()
    except GraphError as error:
        found += error.problems
    except CallableError as error:
        found.append(Problem((option,), str(error)))
    except Exception as error:  # the user's callable may raise anything
        message = f"expected the {option} to build, found {type(error).__name__}: {error}; "
        message += "mend what it names"
        found.append(Problem((option,), message))
    return None


def _fit_problems(
    model: ModelOptions, network: nn.Module, *, only_scalars: bool
) -> Iterator[Problem]:
    """Yield why features, layers and task do not fit each other, where that is for sure.

    A field may hold an array, which counts with all its elements: then fewer fields than the
    network has inputs can be right.
    """
    if isinstance(model.features, str):
        return
    widths = [feature.width for feature in model.resolved_features]
    count, wanted = sum(width or 1 for width in widths), _wanted_features(network)
    if not only_scalars and None in widths:
        if wanted is None:
            return
        count = max(count, wanted)
    if wanted not in (None, count):
        message = (
            f"expected {wanted} features to fit {_first_layer(network)}, found "
            f"{_counted(model, count)}; change the features or the first layer"
        )
        yield Problem(("features",), message)
        return
    is_listed = isinstance(model.network, tuple)
    layers = list(network.children()) if is_listed else [network]
    output: Any = torch.zeros(1, count, device=_device(network))
    for index, layer in enumerate(layers):
        before = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        try:
            with torch.no_grad():
                output = layer.eval()(output)
        except NotImplementedError:  # an operation that the meta device does not have
            return
        except Exception as error:  # a layer may refuse its input in any way
            where = ("network", index) if is_listed else ("network",)
            yield Problem(where, _misfit(layer, index, before, error))
            return
    yield from _output_problems(model, output)


def _output_problems(model: ModelOptions, output: Any) -> Iterator[Problem]:
    """Yield why the output of one record does not fit the task, or the classes their weights."""
    head = make_head(model)
    try:
        head.fit(one_tensor(output))
        if isinstance(head, ClassHead):
            Weighting(model, head.classes or ())
    except GraphError as error:
        yield from error.problems
    except StreamflowError as error:
        yield _problem(("network",), str(error))


def _misfit(layer: nn.Module, index: int, shape: object, error: Exception) -> str:
    """Return what is wrong with a layer that does not take what comes before it."""
    giver = "the features" if index == 0 else "the layers before it"
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    what = "the features or the network" if index == 0 else "it or the layer before"
    name = type(layer).__name__
    return (
        f"expected a layer that takes what {giver} give, of the shape {shape}, "
        f"found that {name} says {reason}; change {what}"
    )


def _first_layer(network: nn.Module) -> nn.Module:
    """Return the layer that the features enter, or what holds it where that is not known."""
    while isinstance(network, nn.Sequential) and len(network):
        network = network[0]
    return network


def _wanted_features(network: nn.Module) -> int | None:
    """Return how many features a network takes, where its first layer tells it."""
    first = _first_layer(network)
    # A lazy layer does not know yet, and says 0.
    return first.in_features or None if isinstance(first, nn.Linear) else None


def _problem(location: tuple[str | int, ...], message: str) -> Problem:
    """Return what the pipeline says, which is no part of a graph, in the words of graphs."""
    return Problem(location, message.replace(", got ", ", found ", 1))


def _counted(model: ModelOptions, count: int) -> str:
    """Return how many inputs the features make, and which of them make several."""
    several = [f"{one} makes {one.width}" for one in model.resolved_features if one.width]
    return f"{count} ({', '.join(several)})" if several else str(count)


def _device(network: nn.Module) -> torch.device:
    parameter = next(network.parameters(), None)
    return torch.device("meta") if parameter is None else parameter.device

"""Deep checks of a model: what is only found by building its network, on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from streamflow.callables import CallableError
from streamflow.errors import GraphError, Problem, StreamflowError
from streamflow.models.declaration import Model
from streamflow.models.heads import make_head, one_tensor
from streamflow.models.network import (
    build_loss,
    build_network,
    build_optimizer,
    build_scheduler,
)
from streamflow.models.options import pipeline_options
from streamflow.pipeline.assembly import check_options
from streamflow.pipeline.checks import takes_target


def model_problems(model: Model, folder: Path, *, only_scalars: bool) -> Iterator[Problem]:
    """Yield what is wrong with a model's network, loss, optimizer, stages, features and weights."""
    found: list[Problem] = []
    network = _attempt(found, "network", lambda: _meta_network(model, folder))
    loss = _attempt(found, "loss", lambda: build_loss(model, folder))
    if loss is not None and takes_target(loss) != (model.target is not None):
        found.append(_loss_problem(model))
    _attempt(found, "optimizer", lambda: build_optimizer(model, folder))
    _attempt(found, "scheduler", lambda: build_scheduler(model, folder))
    if model.weights is not None and not (folder / model.weights).is_file():
        message = f"expected a file of weights, found none at {folder / model.weights}"
        found.append(Problem(("weights",), message))
    yield from found
    if network is None or found:
        return
    yield from _feature_problems(model, network, only_scalars=only_scalars)
    try:
        check_options(network, **pipeline_options(model, folder))
    except StreamflowError as error:
        where, _, message = str(error).partition(": ")
        yield Problem((where,), message)


def _loss_problem(model: Model) -> Problem:
    """Return what is wrong where a loss and the declared target do not go together."""
    if model.target is None:
        message = "expected a loss of the output alone, as there is no target, found one of both"
        return Problem(("loss",), f"{message}; name the target")
    message = "expected a loss of (output, target), found one of the output alone"
    return Problem(("loss",), f"{message}; remove the target, or change the loss")


def _meta_network(model: Model, folder: Path) -> nn.Module:
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
        message = f"expected the {option} to build, found {type(error).__name__}: {error}"
        found.append(Problem((option,), message))
    return None


def _feature_problems(model: Model, network: nn.Module, *, only_scalars: bool) -> Iterator[Problem]:
    """Yield why as many numbers as there are features do not fit, where that is for sure.

    A field may hold an array, which counts with all its elements: then fewer fields than the
    network has inputs can be right.
    """
    if isinstance(model.features, str):
        return
    count = len(model.features)
    first = next((module for module in network.modules() if not list(module.children())), None)
    wanted = first.in_features if isinstance(first, nn.Linear) else None
    if not only_scalars and (wanted is None or count <= wanted):
        return
    try:
        with torch.no_grad():
            output = network.eval()(torch.zeros(1, count, device=_device(network)))
    except NotImplementedError:  # an operation that the meta device does not have
        return
    except Exception as error:
        what = f"{first}" if wanted else f"the network, which says: {error}"
        message = (
            f"expected {wanted or 'other'} features to fit {what}, found {count}; "
            f"change the features or the first layer"
        )
        yield Problem(("features",), message)
        return
    try:
        make_head(model).fit(one_tensor(output))
    except StreamflowError as error:
        yield Problem(("network",), str(error))


def _device(network: nn.Module) -> torch.device:
    parameter = next(network.parameters(), None)
    return torch.device("meta") if parameter is None else parameter.device

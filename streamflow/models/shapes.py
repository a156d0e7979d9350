"""The shapes of a model's samples, told by its declaration and its network, without a record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from streamflow.errors import StreamflowError
from streamflow.models.declaration import ModelOptions
from streamflow.models.heads import Head, make_head, one_tensor
from streamflow.models.network import build_network


class ShapeError(StreamflowError, ValueError):
    """The shape of a record's input is not known, or does not fit the network."""


def random_inputs(
    model: ModelOptions, network: nn.Module, asked: Sequence[int] | None = None, *, count: int = 1
) -> Tensor:
    """Return inputs (count, ...) of standard-normal features; of categories that there are.

    Args:
        model: The declaration; its seed makes the numbers.
        network: Its network, whose first layer may tell the shape.
        asked: Shape of one input, where neither of them does.
        count: Number of inputs.

    Raises:
        ShapeError: Nothing tells the shape.
    """
    shape = asked or _shape(model, network)
    generator = torch.Generator().manual_seed(model.seed)
    inputs = torch.randn(count, *shape, generator=generator)
    place = 0
    for feature in model.resolved_features:
        if feature.encode == "index":
            indices = torch.randint(feature.num_categories, (count,), generator=generator)
            inputs[:, place] = indices.to(inputs.dtype)
        place += feature.width or 1
    return inputs


def fitted_head(model: ModelOptions, folder: Path, inputs: Tensor) -> Head:
    """Return the model's head, which knows the outputs' shape from those of one input (1, ...).

    Raises:
        ShapeError: The network does not take such an input.
        OutputError: Its output does not fit the task.
    """
    network = build_network(model, folder)  # one of its own, as it is to predict here
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = network.eval()(inputs)
    except Exception as error:  # a network may refuse a shape in any way
        message = (
            f"expected a network that takes features of shape {list(inputs.shape[1:])}, got "
            f"{error}; pass their shape, as in --shape 3,32,32"
        )
        raise ShapeError(message) from error
    head = make_head(model)
    head.fit(one_tensor(output))
    return head


def _shape(model: ModelOptions, network: nn.Module) -> Sequence[int]:
    """Return the shape of an input, as the first layer or else the features tell it."""
    width = _width(network)
    if width is not None:
        return (width,)
    if isinstance(model.features, str):
        message = (
            f"expected the shape of {model.features}, which neither the graph nor the first layer "
            "tells, got none; pass it, as in --shape 3,32,32"
        )
        raise ShapeError(message)
    return (sum(feature.width or 1 for feature in model.resolved_features),)


def _width(network: nn.Module) -> int | None:
    """Return how many numbers the first layer takes, if that is all that it takes."""
    first = next((part for part in network.modules() if not list(part.children())), None)
    if isinstance(first, nn.Linear):
        return first.in_features or None  # a lazy layer does not know yet
    return first.input_size if isinstance(first, nn.RNNCellBase) else None

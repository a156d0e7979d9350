"""From a model's declaration to torch: its network, loss and optimizer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from streamflow.errors import ConnectorError, GraphError, Problem, suggestion
from streamflow.models.declaration import Arguments, Layer, Made, ModelOptions
from streamflow.nodes.callables import CallableError, Named, resolve

Built = TypeVar("Built")
Loss = Callable[..., Tensor]
OptimizerFactory = Callable[[Any], torch.optim.Optimizer]
SchedulerFactory = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]

# The global random generator is one for all threads, and models open at the same time.
_SEEDING = threading.Lock()


def build_network(model: ModelOptions, folder: Path) -> nn.Module:
    """Build the network as a plain script would right after ``torch.manual_seed(seed)``.

    The global random generator is left as it was.

    Raises:
        GraphError: A layer that torch does not have, or arguments that it does not take.
        CallableError: The callable does not import.
    """
    with _SEEDING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(model.seed)
        return _build(model, folder)


def _build(model: ModelOptions, folder: Path) -> nn.Module:
    if isinstance(model.network, tuple):
        layers = _each(
            partial(_build_layer, layer, ("network", index), folder)
            for index, layer in enumerate(model.network)
        )
        return nn.Sequential(*layers)
    network = resolve(model.network, folder)()
    if not isinstance(network, nn.Module):
        message = f"expected a callable that returns a torch.nn.Module, found {network!r}; "
        message += "return one"
        raise GraphError([Problem(("network",), message)])
    return network


def _each(builds: Iterable[Callable[[], Built]]) -> list[Built]:
    """Return what each builds, or tell at once what is wrong with all of them."""
    built: list[Built] = []
    problems: list[Problem] = []
    for build in builds:
        try:
            built.append(build())
        except GraphError as error:
            problems += error.problems
    if problems:
        raise GraphError(problems)
    return built


def _build_layer(layer: Layer, location: tuple[str | int, ...], folder: Path) -> nn.Module:
    name, arguments = (layer, None) if isinstance(layer, str) else next(iter(layer.items()))
    factory = _layer_factory(name, location, folder)
    try:
        built = _call(factory, arguments)
    except Exception as error:  # a layer may refuse its arguments in any way
        message = (
            f"expected arguments that {name} takes, found {arguments!r}: {error}; see its docs"
        )
        raise GraphError([Problem((*location, name), message)]) from error
    if not isinstance(built, nn.Module):
        message = f"expected {name} to make a torch.nn.Module, found {type(built).__name__}; "
        message += "return one"
        raise GraphError([Problem((*location, name), message)])
    return built


def _layer_factory(
    name: str, location: tuple[str | int, ...], folder: Path
) -> Callable[..., object]:
    if ":" in name:
        try:
            return resolve(name, folder)
        except CallableError as error:
            raise GraphError([Problem(location, str(error))]) from error
    factory = getattr(nn, name, None)
    if not (isinstance(factory, type) and issubclass(factory, nn.Module)):
        layers = [other for other in dir(nn) if _is_class(nn, other, nn.Module)]
        message = f"expected a layer of torch.nn, found {name}; {suggestion(name, layers)}"
        raise GraphError([Problem(location, message)])
    return factory


def _call(factory: Callable[..., object], arguments: Arguments) -> object:
    if arguments is None:
        return factory()
    if isinstance(arguments, dict):
        return factory(**arguments)
    return factory(*(arguments if isinstance(arguments, list) else [arguments]))


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a ``state_dict`` in safetensors into the network.

    Raises:
        ConnectorError: The file cannot be read.
        GraphError: It is of another network.
    """
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        message = f"weights: expected a readable safetensors file at {path}, found: {error}"
        raise ConnectorError(message) from error
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        message = f"expected the weights of this network in {path}, found: {error}"
        raise GraphError([Problem(("weights",), message)]) from error


def build_loss(model: ModelOptions, folder: Path) -> Loss | None:
    """Return the loss; ``None`` if the model does not learn.

    Raises:
        GraphError: There is no such loss, or it does not take these options.
        CallableError: The callable does not import.
    """
    if not model.learn:
        return None
    name = model.loss_name
    if name is None:
        assert model.loss is not None
        assert not isinstance(model.loss, dict)
        return resolve(model.loss, folder)
    if not callable(getattr(nn.functional, name, None)):
        losses = [other for other in dir(nn.functional) if other.endswith(("_loss", "entropy"))]
        message = (
            f"expected a loss of torch.nn.functional, found {name}; {suggestion(name, losses)}"
        )
        raise GraphError([Problem(("loss",), message)])
    options = next(iter(model.loss.values())) if isinstance(model.loss, dict) else {}
    loss = getattr(nn.functional, name)
    try:
        signature(loss).bind(None, None, **options)
    except TypeError as error:
        message = f"expected options with which {name} takes output and target, found {options}: "
        raise GraphError([Problem(("loss",), f"{message}{error}; see its docs")]) from error
    return partial(loss, **options)


def build_optimizer(model: ModelOptions, folder: Path) -> OptimizerFactory | list[OptimizerFactory]:
    """Return what makes an optimizer of parameters, or one for each stage.

    Raises:
        GraphError: There is no such optimizer, or it does not take these options.
        CallableError: The callable does not import.
    """
    declared = model.optimizer
    if isinstance(declared, tuple):
        return _each(
            partial(_build_optimizer, one, ("optimizer", index), model, folder)
            for index, one in enumerate(declared)
        )
    return _build_optimizer(declared, ("optimizer",), model, folder)


def _build_optimizer(
    declared: Made | Named, location: tuple[str | int, ...], model: ModelOptions, folder: Path
) -> OptimizerFactory:
    if callable(declared):
        return declared
    name, options = (declared, {}) if isinstance(declared, str) else next(iter(declared.items()))
    factory = _factory(torch.optim, name, options, torch.optim.Optimizer, location, folder)
    if ":" not in name:
        parameters = [nn.Parameter(torch.zeros(1))]
        _attempt(lambda: factory(parameters), name, options, (*location, name))
        _each(
            partial(_attempt, partial(factory, parameters, **group), name, group, ("groups", match))
            for match, group in model.groups.items()
        )
    return factory


def build_scheduler(model: ModelOptions, folder: Path) -> SchedulerFactory | None:
    """Return what makes a schedule of an optimizer, if one is declared.

    Raises:
        GraphError: There is no such schedule, or it does not take these options.
        CallableError: The callable does not import.
    """
    declared = model.scheduler
    if declared is None or callable(declared):
        return declared
    name, options = (declared, {}) if isinstance(declared, str) else next(iter(declared.items()))
    schedules = torch.optim.lr_scheduler
    factory = _factory(schedules, name, options, schedules.LRScheduler, ("scheduler",), folder)
    if ":" not in name:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
        _attempt(lambda: factory(optimizer), name, options, ("scheduler", name))
    return factory


def _factory(
    namespace: ModuleType,
    name: str,
    options: Mapping[str, Any],
    base: type,
    location: tuple[str | int, ...],
    folder: Path,
) -> Callable[[Any], Any]:
    """Return a class of torch, or the user's own callable, with options."""
    if ":" in name:
        return partial(resolve(name, folder), **options)
    if not _is_class(namespace, name, base):
        known = [n for n in dir(namespace) if _is_class(namespace, n, base) and n != base.__name__]
        kind = "an optimizer" if base is torch.optim.Optimizer else "a schedule"
        message = (
            f"expected {kind} of {namespace.__name__}, found {name}; {suggestion(name, known)}"
        )
        raise GraphError([Problem(location, message)])
    return partial(getattr(namespace, name), **options)


def _attempt(
    build: Callable[[], object],
    name: str,
    options: Mapping[str, Any],
    location: tuple[str | int, ...],
) -> None:
    try:
        build()
    except Exception as error:  # an optimizer may refuse its options in any way
        message = (
            f"expected options that {name} takes, found {dict(options)}: {error}; see its docs"
        )
        raise GraphError([Problem(location, message)]) from error


def _is_class(module: object, name: str, base: type) -> bool:
    found = getattr(module, name, None)
    return isinstance(found, type) and issubclass(found, base)

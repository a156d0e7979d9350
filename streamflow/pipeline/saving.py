"""Optimizer state under the user's parameter names, so that it fits any number of stages."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from streamflow.pipeline import trees
from streamflow.pipeline.stage import Stage

_NOT_SETTINGS = ("params", "param_names")


def copy(tree: Any) -> Any:
    """Copy all tensors, so that what is saved does not change while learning goes on."""
    return trees.map_tensors(lambda tensor: tensor.detach().clone(), tree)


def save_optimizers(stages: Iterable[Stage]) -> dict[str, Any]:
    """Return ``state`` and ``settings`` (learning rate and the like) of every parameter by name."""
    state, settings = {}, {}
    for stage in stages:
        for name, parameter, group in _groups(stage):
            assert stage.optimizer is not None
            state[name] = copy(dict(stage.optimizer.state.get(parameter, {})))
            settings[name] = copy({k: v for k, v in group.items() if k not in _NOT_SETTINGS})
    return {"state": state, "settings": settings}


def load_optimizers(stages: Iterable[Stage], saved: dict[str, Any]) -> None:
    """Set what :func:`save_optimizers` returned; settings only where a whole group agrees."""
    for stage in stages:
        agreed: dict[int, tuple[dict[str, Any], dict[str, Any] | None]] = {}
        for name, parameter, group in _groups(stage):
            assert stage.optimizer is not None
            stage.optimizer.state[parameter] = _moved(saved["state"].get(name, {}), parameter)
            settings = saved["settings"].get(name)
            _, known = agreed.setdefault(id(group), (group, settings))
            agreed[id(group)] = (group, settings if settings == known else None)
        for group, settings in agreed.values():
            group.update(copy(settings or {}))


def _moved(state: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
    def moved(key: str, value: Any) -> Any:
        # Optimizers keep their step count on the CPU unless they are capturable.
        is_moved = isinstance(value, Tensor) and key != "step"
        return value.to(parameter.device, copy=True) if is_moved else copy(value)

    return {key: moved(key, value) for key, value in state.items()}


def _groups(stage: Stage) -> Iterable[tuple[str, Tensor, dict[str, Any]]]:
    optimizer: torch.optim.Optimizer | None = stage.optimizer
    if optimizer is None:
        return
    names = {id(parameter): name for name, parameter in stage.parameters.items()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield names[id(parameter)], parameter, group

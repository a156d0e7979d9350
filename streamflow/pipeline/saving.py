"""The state of a pipeline under the user's names, so that it fits any number of stages."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from streamflow.pipeline import trees
from streamflow.pipeline.stages.stage import Stage
from streamflow.pipeline.stages.updates import Updates, settings_of


def copy(tree: Any) -> Any:
    """Copy all tensors, so that what is saved does not change while learning goes on."""
    return trees.map_tensors(_copied, tree)


def _copied(tensor: Tensor) -> Tensor:
    if not is_lazy(tensor):
        return tensor.detach().clone()
    # A lazy module's has nothing in it before the first sample.
    empty: type[Any] = type(tensor)
    made: Tensor = empty(requires_grad=tensor.requires_grad, dtype=tensor.dtype)
    return made


def save(stages: Sequence[Stage]) -> dict[str, Any]:
    """Return what stages know beside weights and counters; they must be drained."""
    return {
        "optimizer": _save_optimizers(stages),
        "schedulers": [_save_scheduler(stage.updates) for stage in stages],
        "accumulated": _save_accumulated(stages),
        "recurrent": _save_recurrent(stages),
        "random": [stage.randomness.state.clone() for stage in stages],
    }


def load(stages: Sequence[Stage], saved: dict[str, Any]) -> None:
    """Give stages what :func:`save` returned and the counters, from any number of stages."""
    _load_optimizers(stages, saved["optimizer"])
    _load_accumulated(stages, saved.get("accumulated", {}))
    _load_recurrent(stages, saved.get("recurrent"))
    counters = saved["counters"]
    made, skipped, random_states = counters["updates"], counters["skipped"], saved.get("random", [])
    schedulers = saved.get("schedulers", [])
    is_same = len(made) == len(stages)
    if made and not is_same:
        count = len(stages)
        made, skipped, random_states = [made[0]] * count, [skipped[0]] * count, []
    for stage, updates, lost in zip(stages, made, skipped, strict=False):
        stage.updates.made, stage.updates.skipped = updates, lost
        stage.states.forgotten = counters.get("forgotten", 0)
    for stage, random_state in zip(stages, random_states, strict=False):
        stage.randomness.state = random_state.clone()
    for index, stage in enumerate(stages):
        _load_scheduler(stage.updates, schedulers, index if is_same else None)


def _save_optimizers(stages: Iterable[Stage]) -> dict[str, Any]:
    """Return by parameter ``state``, ``settings`` (learning rate ...), and those ``declared``."""
    state, settings, declared = {}, {}, {}
    for stage in stages:
        for name, parameter, index in _places(stage.updates):
            optimizer = stage.updates.optimizer
            assert optimizer is not None
            state[name] = copy(dict(optimizer.state.get(parameter, {})))
            settings[name] = copy(settings_of(optimizer.param_groups[index]))
            declared[name] = copy(stage.updates.declared_groups[index])
    return {"state": state, "settings": settings, "declared": declared}


def _load_optimizers(stages: Iterable[Stage], saved: dict[str, Any]) -> None:
    """Set states by name; settings where a whole group agrees and their declaration is the same."""
    for stage in stages:
        agreed: dict[int, Any] = {}
        for name, parameter, index in _places(stage.updates):
            optimizer = stage.updates.optimizer
            assert optimizer is not None
            optimizer.state[parameter] = _moved(saved["state"].get(name, {}), parameter)
            own = stage.updates.declared_groups[index]
            settings = saved["settings"].get(name, {})
            kept = _undisputed(settings, saved["declared"].get(name, {}), own)
            if "lr" not in kept:
                kept.pop("initial_lr", None)
            agreed[index] = kept if agreed.get(index, kept) == kept else {}
        for index, kept in agreed.items():
            assert stage.updates.optimizer is not None
            stage.updates.optimizer.param_groups[index].update(copy(kept))


def _undisputed(
    saved: dict[str, Any], declared: dict[str, Any], own: dict[str, Any]
) -> dict[str, Any]:
    """Return the saved values but of what is declared otherwise now: a new declaration wins."""
    return {k: v for k, v in saved.items() if declared.get(k) == own.get(k)}


def _moved(state: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
    def moved(key: str, value: Any) -> Any:
        # Optimizers keep their step count on the CPU unless they are capturable.
        is_moved = isinstance(value, Tensor) and key != "step"
        return value.to(parameter.device, copy=True) if is_moved else copy(value)

    return {key: moved(key, value) for key, value in state.items()}


def _places(updates: Updates) -> Iterable[tuple[str, Tensor, int]]:
    """Yield every parameter with its name and the index of its group."""
    optimizer: torch.optim.Optimizer | None = updates.optimizer
    if optimizer is None:
        return
    names = {id(parameter): name for name, parameter in updates.parameters.items()}
    for index, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            yield names[id(parameter)], parameter, index


def _save_scheduler(updates: Updates) -> dict[str, Any] | None:
    if updates.scheduler is None:
        return None
    return {
        "state": copy(updates.scheduler.state_dict()),
        "declared": copy(updates.declared_schedule),
    }


def _load_scheduler(
    updates: Updates, saved: Sequence[dict[str, Any] | None], index: int | None
) -> None:
    """Set the state of the same stage, or of another that has made as many steps."""
    if updates.scheduler is None or updates.optimizer is None:
        return
    if index is not None:
        found = saved[index] if index < len(saved) else None
    else:
        found = next((state for state in saved if state is not None), None)
    if found is None:
        return
    state, declared = found["state"], found["declared"]
    if index is None:
        groups = updates.optimizer.param_groups
        state, declared = _with_rates(state, groups), _with_rates(declared, groups)
        own = _with_rates(updates.declared_schedule, groups)
    else:
        own = updates.declared_schedule
    updates.scheduler.load_state_dict(copy(_undisputed(state, declared, own)))


def _with_rates(state: dict[str, Any], groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Replace the rates of the groups that a scheduler remembers by those of other groups."""
    known = {"base_lrs": "initial_lr", "_last_lr": "lr"}
    return {
        key: [group.get(known[key], group["lr"]) for group in groups]
        if key in known
        else [_with_rates(part, groups) for part in value]
        if key == "_schedulers"
        else value
        for key, value in state.items()
    }


def _save_accumulated(stages: Iterable[Stage]) -> dict[str, Any]:
    """Return by parameter how many gradients of a started group there are, and their sum."""
    return {
        name: {
            "count": stage.updates.pending,
            "gradient": None if parameter.grad is None else parameter.grad.detach().clone(),
        }
        for stage in stages
        if stage.updates.pending
        for name, parameter in stage.updates.parameters.items()
    }


def _load_accumulated(stages: Iterable[Stage], saved: dict[str, Any]) -> None:
    for stage in stages:
        parameters = stage.updates.parameters
        counts = {name: saved[name]["count"] if name in saved else 0 for name in parameters}
        # Stages that skipped a sample have fewer; what joins them keeps its mean.
        stage.updates.pending = pending = min(counts.values(), default=0)
        for name, parameter in parameters.items():
            gradient = saved[name]["gradient"] if pending else None
            if gradient is not None:
                gradient = gradient.to(parameter.device, copy=True) * (pending / counts[name])
            parameter.grad = gradient


def _save_recurrent(stages: Iterable[Stage]) -> dict[str, Any]:
    initial: dict[str, Tensor] = {}
    values: dict[str, list[Tensor]] = {}
    keys: list[Any] = []
    for stage in stages:
        if not stage.states:
            continue
        sets = stage.states.save()
        keys = [key for key, _ in sets]
        initial |= copy(stage.states.initial)
        values |= {name: [found[name] for _, found in sets] for name in stage.states.initial}
    return {"keys": keys, "initial": initial, "values": values}


def _load_recurrent(stages: Iterable[Stage], saved: dict[str, Any] | None) -> None:
    for stage in stages:
        if not stage.states or not saved or not saved["initial"]:
            continue
        sets = [
            (key, {name: saved["values"][name][index] for name in stage.states.initial})
            for index, key in enumerate(saved["keys"])
        ]
        stage.states.load(saved["initial"], sets)

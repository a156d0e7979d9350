"""The state of a pipeline under the user's names, so that it fits any number of stages."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from streamflow.pipeline import trees
from streamflow.pipeline.stages.recurrence import States
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


def save(stage: Stage) -> dict[str, Any]:
    """Return what a drained stage knows beside weights and counters."""
    updates = stage.updates
    return {
        "optimizer": _save_optimizer(updates),
        "scheduler": _save_scheduler(updates),
        "accumulated": _save_accumulated(updates),
        "recurrent": _save_recurrent(stage.states),
        "random": stage.randomness.state.clone(),
    }


def join(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what the stages of a pipeline know, from what each one has saved."""
    by_name: dict[str, dict[str, Any]] = {"state": {}, "settings": {}, "declared": {}}
    recurrent: dict[str, Any] = {"keys": [], "initial": {}, "values": {}}
    for part in parts:
        for kind, found in part["optimizer"].items():
            by_name[kind] |= found
        if part["recurrent"]:
            recurrent["keys"] = part["recurrent"]["keys"]
            recurrent["initial"] |= part["recurrent"]["initial"]
            recurrent["values"] |= part["recurrent"]["values"]
    return {
        "optimizer": by_name,
        "schedulers": [part["scheduler"] for part in parts],
        "accumulated": {k: v for part in parts for k, v in part["accumulated"].items()},
        "recurrent": recurrent,
        "random": [part["random"] for part in parts],
    }


def split(saved: dict[str, Any], num_stages: int) -> list[dict[str, Any]]:
    """Return for each of some stages what :func:`load` takes.

    Args:
        saved: What :func:`join` returned, with the counters, of any number of stages.
        num_stages: How many stages there are now.
    """
    counters, schedulers = saved["counters"], saved.get("schedulers", [])
    made = counters["updates"]
    is_same = len(made) == num_stages
    first = next((state for state in schedulers if state is not None), None)
    return [
        {
            "optimizer": saved["optimizer"],
            "accumulated": saved.get("accumulated", {}),
            "recurrent": saved.get("recurrent"),
            "updates": _entry(made, index if is_same else 0),
            "skipped": _entry(counters["skipped"], index if is_same else 0),
            "forgotten": counters.get("forgotten", 0),
            "random": _entry(saved.get("random", []), index) if is_same else None,
            "scheduler": _entry(schedulers, index) if is_same else first,
            "is_same_stage": is_same,
        }
        for index in range(num_stages)
    ]


def _entry(found: Sequence[Any], index: int) -> Any:
    return found[index] if index < len(found) else None


def load(stage: Stage, saved: dict[str, Any]) -> None:
    """Give a stage its part of what was saved."""
    _load_optimizer(stage.updates, saved["optimizer"])
    _load_accumulated(stage.updates, saved["accumulated"])
    _load_recurrent(stage.states, saved["recurrent"])
    if saved["updates"] is not None:
        stage.updates.made, stage.updates.skipped = saved["updates"], saved["skipped"]
        stage.states.forgotten = saved["forgotten"]
    if saved["random"] is not None:
        stage.randomness.state = saved["random"].clone()
    _load_scheduler(stage.updates, saved["scheduler"], is_same_stage=saved["is_same_stage"])


def _save_optimizer(updates: Updates) -> dict[str, Any]:
    """Return by parameter ``state``, ``settings`` (learning rate ...), and those ``declared``."""
    state, settings, declared = {}, {}, {}
    for name, parameter, index in _places(updates):
        assert updates.optimizer is not None
        state[name] = copy(dict(updates.optimizer.state.get(parameter, {})))
        settings[name] = copy(settings_of(updates.optimizer.param_groups[index]))
        declared[name] = copy(updates.declared_groups[index])
    return {"state": state, "settings": settings, "declared": declared}


def _load_optimizer(updates: Updates, saved: dict[str, Any]) -> None:
    """Set states by name; settings where a whole group agrees and their declaration is the same."""
    agreed: dict[int, Any] = {}
    for name, parameter, index in _places(updates):
        assert updates.optimizer is not None
        updates.optimizer.state[parameter] = _moved(saved["state"].get(name, {}), parameter)
        own = updates.declared_groups[index]
        settings = saved["settings"].get(name, {})
        kept = _undisputed(settings, saved["declared"].get(name, {}), own)
        if "lr" not in kept:
            kept.pop("initial_lr", None)
        agreed[index] = kept if agreed.get(index, kept) == kept else {}
    for index, kept in agreed.items():
        assert updates.optimizer is not None
        updates.optimizer.param_groups[index].update(copy(kept))


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


def _load_scheduler(updates: Updates, saved: dict[str, Any] | None, *, is_same_stage: bool) -> None:
    """Set the state of the same stage, or of another that has made as many steps."""
    if updates.scheduler is None or updates.optimizer is None or saved is None:
        return
    state, declared, own = saved["state"], saved["declared"], updates.declared_schedule
    if not is_same_stage:
        groups = updates.optimizer.param_groups
        state, declared, own = (_with_rates(found, groups) for found in (state, declared, own))
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


def _save_accumulated(updates: Updates) -> dict[str, Any]:
    """Return by parameter how many gradients of a started group there are, and their sum."""
    if not updates.pending:
        return {}
    return {
        name: {
            "count": updates.pending,
            "gradient": None if parameter.grad is None else parameter.grad.detach().clone(),
        }
        for name, parameter in updates.parameters.items()
    }


def _load_accumulated(updates: Updates, saved: dict[str, Any]) -> None:
    parameters = updates.parameters
    counts = {name: saved[name]["count"] if name in saved else 0 for name in parameters}
    # Stages that skipped a sample have fewer; what joins them keeps its mean.
    updates.pending = pending = min(counts.values(), default=0)
    for name, parameter in parameters.items():
        gradient = saved[name]["gradient"] if pending else None
        if gradient is not None:
            gradient = gradient.to(parameter.device, copy=True) * (pending / counts[name])
        parameter.grad = gradient


def _save_recurrent(states: States) -> dict[str, Any] | None:
    if not states:
        return None
    sets = states.save()
    return {
        "keys": [key for key, _ in sets],
        "initial": copy(states.initial),
        "values": {name: [found[name] for _, found in sets] for name in states.initial},
    }


def _load_recurrent(states: States, saved: dict[str, Any] | None) -> None:
    if not states or not saved or not saved["initial"]:
        return
    sets = [
        (key, {name: saved["values"][name][index] for name in states.initial})
        for index, key in enumerate(saved["keys"])
    ]
    states.load(saved["initial"], sets)

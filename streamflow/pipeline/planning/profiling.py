"""What the layers of a network cost on the devices that would run them.

Theory of operation. A stage costs more than its layers: starting forward, backward and update takes
its time. So three kinds of pipeline are measured, all on one sample, in turn:

    whole     one stage with all layers
    single    every layer a stage of its own, without lag, then with
    rest      with lag, all layers but the last, which never has a lag

What the single layers take together beyond the whole is what a stage costs by itself, counted once
for each layer but one. The layers share what is left of the whole in proportion to what each takes
beyond that. Thereby the costs of the finest and of the coarsest cut are those that were measured,
and those between lie between.
"""

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from streamflow.errors import PartitionError
from streamflow.pipeline import trees
from streamflow.pipeline.network.layers import layer_names
from streamflow.pipeline.network.partition import first_module
from streamflow.pipeline.options import Options
from streamflow.pipeline.planning.costs import Cost, Costs, Device, Layer, Profile
from streamflow.pipeline.planning.rehearsal import (
    Rehearsal,
    Subject,
    in_turn,
    low,
    low_costs,
)
from streamflow.pipeline.stages.lanes import device_of, spread
from streamflow.pipeline.stages.stage import Stage

_HAND_OVERS = 64
_ADMISSION_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What limits a pipeline beside its stages.

    Attributes:
        cores: How many threads can run at the same time.
        hand_over: Seconds from one thread's sending to another's receiving.
        admission: Seconds of the caller for each of many samples.
        call: Seconds of the caller for a call with one sample.
    """

    cores: int
    hand_over: float
    admission: float
    call: float


def profile(subject: Subject, *, seconds: float) -> tuple[Profile, Surroundings]:
    """Measure the layers of a network with one sample, without a trace in it.

    A network that cannot be traced is a single layer. While it measures there are a copy of the
    network, its gradients, and as many states of the optimizer as kinds of pipeline.

    Args:
        subject: The network, its sample and how it would be run.
        seconds: How long to measure; slow networks take longer.

    Raises:
        OptionError: The network cannot be copied.
        SampleError: The sample does not fit the network.
    """
    devices, kinds = _devices(subject)
    names = _names(subject)
    seconds /= len(kinds)
    measured = [_measure(subject, names, device, seconds) for device in kinds]
    first = measured[0]
    layers = tuple(
        replace(layer, costs=tuple(row.layers[index].costs[0] for row in measured))
        for index, layer in enumerate(first.layers)
    )
    if len(devices) > 1:
        layers = _with_transfers(layers, first.values, devices)
    fixed = tuple(row.fixed for row in measured)
    surroundings = Surroundings(count_cores(), time_hand_over(), first.admission, first.call)
    return Profile(layers, devices, fixed, _count_bytes(subject.sample)), surroundings


def _names(subject: Subject) -> list[str]:
    stages = subject.options.stages
    cuts = [] if isinstance(stages, int | str) else list(stages)
    try:
        return layer_names(subject.module, state=subject.options.state, cuts=cuts)
    except PartitionError:
        if isinstance(stages, int) and stages > 1:
            raise
        return [first_module(subject.module), *cuts]


def _devices(subject: Subject) -> tuple[tuple[Device, ...], list[torch.device]]:
    """Return the devices of the stages, and one device of each kind."""
    asked = subject.options.devices
    count = len(asked) if isinstance(asked, Sequence) and not isinstance(asked, str) else 1
    found = [device or device_of(subject.module) for device in spread(asked, count)]
    models = [_model(device) for device in found]
    kinds = list(dict.fromkeys(models))
    devices = tuple(
        Device(str(device), kinds.index(model), _memory(device))
        for device, model in zip(found, models, strict=True)
    )
    return devices, [found[models.index(kind)] for kind in kinds]


def _model(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _memory(device: torch.device) -> int | None:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


@dataclass(frozen=True, slots=True)
class _Measured:
    """What one kind of device gave; ``values`` are those that cross the cut after each layer."""

    layers: list[Layer]
    fixed: Costs
    admission: float
    call: float
    values: list[Any]


def _measure(
    subject: Subject, names: Sequence[str], device: torch.device, seconds: float
) -> _Measured:
    copied = subject.copy()
    cuts = names[1:]
    alone = on_one_device(subject.options, str(device))
    common = alone | recorded(subject.options, 1)
    late = alone | recorded(subject.options, len(names))
    whole = Rehearsal(copied, (), "inline", **common)
    prompt = Rehearsal(copied, cuts, "inline", **common | _PROMPT)
    rehearsals = [whole, prompt]
    if cuts and subject.options.schedule != "sequential":
        rehearsals += [Rehearsal(copied, c, "inline", **late) for c in (cuts, cuts[-1:])]
    for rehearsal in rehearsals:
        rehearsal.settle(rehearsal.total)
    single = Rehearsal(copied, (), "inline", **common)
    rounds = in_turn([copied.module], [r.record for r in rehearsals], seconds=seconds)
    times = in_turn([copied.module], [whole.admit, single.admit], seconds=_ADMISSION_SECONDS)
    costs = [low_costs(found) for found in rounds]
    fixed, layers = share_out(costs[1], costs[0][0])
    both = Costs(fixed, fixed), [Costs(cost, cost) for cost in layers]
    if len(costs) > 2:
        late_fixed, late_layers = share_out(costs[2][:-1], costs[3][0])
        rows = zip(layers, [*late_layers, layers[-1]], strict=True)
        both = Costs(fixed, late_fixed), [Costs(*row) for row in rows]
    values = _values(prompt.stages, copied.sample)
    return _Measured(
        [
            Layer(name, (cost,), *_sizes(stage), _count_bytes(value))
            for name, cost, stage, value in zip(names, both[1], prompt.stages, values, strict=True)
        ],
        both[0],
        low(times[0]),
        low(times[1]),
        values,
    )


_PROMPT = {"schedule": "sequential", "backward": "own"}


def on_one_device(options: Options, device: str) -> dict[str, Any]:
    """Return changes of options with which any number of stages runs, on one device."""
    return {"devices": device, "optimizer": options.optimizer_of(0)}


def recorded(options: Options, num_stages: int) -> dict[str, Any]:
    """Return changes of options with which each stage does all that it does under load, itself."""
    is_greedy = options.schedule == "greedy" and num_stages > 1
    return {"clip_over": "stage"} | ({"schedule": "1f1b"} if is_greedy else {})


def share_out(singles: Sequence[Cost], whole: Cost) -> tuple[Cost, list[Cost]]:
    """Split what layers take as stages of their own into that of the stage and of the layer.

    Returns:
        What a stage takes beyond its layers, and what each layer takes; together ``whole``.
    """
    columns = [
        _share_out([getattr(cost, action) for cost in singles], getattr(whole, action))
        for action in ("forward", "backward", "update")
    ]
    fixed = Cost(*(column[0] for column in columns))
    return fixed, [Cost(*row) for row in zip(*(column[1] for column in columns), strict=True)]


def _share_out(singles: Sequence[float], whole: float) -> tuple[float, list[float]]:
    """Split one action; who does not perform it at all, as a layer without weights, has no part."""
    num_active = sum(single > 0 for single in singles)
    if num_active < 2:
        return 0.0, [whole if single > 0 else 0.0 for single in singles]
    fixed = min(max((sum(singles) - whole) / (num_active - 1), 0.0), whole)
    beyond = [max(single - fixed, 0.0) for single in singles]
    if not sum(beyond):
        return whole, [0.0 for _ in singles]
    factor = (whole - fixed) / sum(beyond)
    return fixed, [part * factor for part in beyond]


def _values(stages: Sequence[Stage], sample: Any) -> list[Any]:
    """Return what each stage makes of the sample."""
    found, values = [], (sample,)
    for stage in stages:
        values = stage.peek(stage.lane.bring(values, None), None)
        found.append(values)
    return found


def _sizes(stage: Stage) -> tuple[int, int]:
    """Return the bytes of a stage's parameters, and of gradients, optimizer state and buffers."""
    parameters = list(stage.parameters.values())
    optimizer = stage.updates.optimizer
    states = list(optimizer.state.values()) if optimizer is not None else []
    gradients = [parameter for parameter in parameters if parameter.requires_grad]
    rest = [*gradients, states, list(stage.module.buffers())]
    return _count_bytes(parameters), _count_bytes(rest)


def _with_transfers(
    layers: Sequence[Layer], values: Sequence[Any], devices: Sequence[Device]
) -> tuple[Layer, ...]:
    """Time each boundary between the first two devices that differ."""
    names = list(dict.fromkeys(device.name for device in devices))
    if len(names) < 2:
        return tuple(layers)
    near, far = map(torch.device, names[:2])
    return tuple(
        replace(layer, transfer=_time_transfer(value, near, far))
        for layer, value in zip(layers, values, strict=True)
    )


def _time_transfer(value: Any, near: torch.device, far: torch.device) -> float:
    here = [tensor.to(near) for tensor in trees.tensors(value)]

    def move() -> float:
        start = time.perf_counter()
        there: list[Tensor] = [tensor.to(far) for tensor in here]
        for tensor in there:
            tensor.flatten()[:1].tolist()  # waits until it has arrived
        return time.perf_counter() - start

    return low([move() for _ in range(8)])


def _count_bytes(tree: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in trees.tensors(tree))


def count_cores() -> int:
    """Return how many threads of this process can run at the same time."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def time_hand_over() -> float:
    """Return the seconds from one thread's sending to another's receiving, while both wait."""
    there: SimpleQueue[bool] = SimpleQueue()
    back: SimpleQueue[bool] = SimpleQueue()

    def answer() -> None:
        while there.get():
            back.put(True)

    thread = threading.Thread(target=answer, name="streamflow hand-over", daemon=True)
    thread.start()
    times = []
    for _ in range(_HAND_OVERS):
        start = time.perf_counter()
        there.put(True)
        back.get()
        times.append((time.perf_counter() - start) / 2)
    there.put(False)
    thread.join()
    return low(times)

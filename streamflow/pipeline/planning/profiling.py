"""What the layers of a network cost on the devices that would run them.

Theory of operation. A stage costs more than its layers: starting forward, backward and update takes
its time. So two kinds of pipeline are measured, both on one sample, in turn:

    whole     one stage with all layers
    single    every layer a stage of its own

What the single layers take together beyond the whole is what a stage costs by itself, counted once
for each layer but one. Both run without lag, where a sample's own forward goes into its backward; a
stage with a lag runs forward twice.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from streamflow.errors import PartitionError
from streamflow.pipeline import trees
from streamflow.pipeline.network.layers import layer_names
from streamflow.pipeline.network.partition import first_module
from streamflow.pipeline.planning.costs import Cost, Device, Layer, Profile
from streamflow.pipeline.planning.rehearsal import (
    Rehearsal,
    Subject,
    in_turn,
    low,
    low_costs,
    on_one_device,
)
from streamflow.pipeline.stages.lanes import device_of, spread
from streamflow.pipeline.stages.stage import Stage

_ADMISSION_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What limits a pipeline beside its stages.

    Attributes:
        cores: How many threads can run at the same time.
        admission: Seconds of the caller for each of many samples.
        call: Seconds of the caller for a call with one sample.
    """

    cores: int
    admission: float
    call: float


def profile(subject: Subject, *, seconds: float) -> tuple[Profile, Surroundings]:
    """Measure the layers of a network with one sample, without a trace in it.

    A network that cannot be traced is a single layer. While it measures there are on each kind of
    device a copy of the network, its gradients, and two states of the optimizer.

    Args:
        subject: The network, its sample and how it would be run.
        seconds: How long to measure; slow networks take longer.

    Raises:
        OptionError: The network cannot be copied.
        PartitionError: It is to be cut by measuring, but cannot be traced.
        SampleError: The sample does not fit the network.
    """
    devices, kinds = _devices(subject)
    names = _names(subject)
    pairs = [_rehearsals(subject, names[1:], device) for device in kinds]
    parted = [_parted_costs(*pair, seconds=seconds / len(kinds)) for pair in pairs]
    whole, single = pairs[0]
    values = _values(single.stages, subject.sample)
    rows = zip(*(costs for _, costs in parted), strict=True)
    layers = tuple(
        Layer(name, costs, *_sizes(stage), _count_bytes(value))
        for name, costs, stage, value in zip(names, rows, single.stages, values, strict=True)
    )
    if len(devices) > 1:
        layers = _with_transfers(layers, values, devices)
    fixed = tuple(fixed for fixed, _ in parted)
    admissions = [partial(whole.admit, whole.count), partial(whole.admit, 1)]
    times = in_turn([whole.module], admissions, seconds=_ADMISSION_SECONDS)
    surroundings = Surroundings(count_cores(), low(times[0]), low(times[1]))
    return Profile(layers, devices, fixed, _count_bytes(subject.sample)), surroundings


def _rehearsals(
    subject: Subject, cuts: Sequence[str], device: torch.device
) -> tuple[Rehearsal, Rehearsal]:
    copied = subject.copy()
    changes = on_one_device(subject.options, str(device)) | _WITHOUT_LAG
    return (
        Rehearsal(copied, (), "inline", **changes),
        Rehearsal(copied, cuts, "inline", **changes),
    )


_WITHOUT_LAG = {"schedule": "sequential", "backward": "own", "clip_over": "stage"}


def _parted_costs(
    whole: Rehearsal, single: Rehearsal, *, seconds: float
) -> tuple[Cost, list[Cost]]:
    for rehearsal in (whole, single):
        rehearsal.settle(rehearsal.total)
    rounds = in_turn([whole.module], [whole.record, single.record], seconds=seconds)
    (together,), singles = map(low_costs, rounds)
    return part_costs(singles, together)


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


def part_costs(singles: Sequence[Cost], whole: Cost) -> tuple[Cost, list[Cost]]:
    """Part what layers take as stages of their own into what the stage and what the layer takes.

    Args:
        singles: Each layer as a stage.
        whole: All of them as one stage.

    Returns:
        What a stage takes beyond its layers, and what each layer takes.
    """
    fixed = Cost(*(_beyond(singles, whole, action) for action in Cost.__slots__))
    return fixed, [
        Cost(*(max(getattr(c, a) - getattr(fixed, a), 0.0) for a in Cost.__slots__))
        for c in singles
    ]


def _beyond(singles: Sequence[Cost], whole: Cost, action: str) -> float:
    """Return what starting an action takes; a layer without weights does not start an update."""
    parts: list[float] = [part for cost in singles if (part := getattr(cost, action)) > 0]
    together: float = getattr(whole, action)
    return max(sum(parts) - together, 0.0) / max(len(parts) - 1, 1)


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

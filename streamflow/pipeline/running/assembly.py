"""From options and cuts to stages that an executor runs."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from streamflow.errors import PartitionError
from streamflow.pipeline import checks, saving
from streamflow.pipeline.network.partition import Partition, partition
from streamflow.pipeline.options import Options
from streamflow.pipeline.running.executor import Executor
from streamflow.pipeline.running.inline import InlineExecutor
from streamflow.pipeline.running.threads import ThreadsExecutor
from streamflow.pipeline.running.worker import failure
from streamflow.pipeline.schedule import Order, orders
from streamflow.pipeline.stages.lanes import Lane, device_of, move, spread
from streamflow.pipeline.stages.messages import Activation, Drain, Result
from streamflow.pipeline.stages.randomness import Randomness
from streamflow.pipeline.stages.recurrence import Set, States, initial_state
from streamflow.pipeline.stages.stage import Stage
from streamflow.pipeline.stages.updates import Updates, check_groups, clip


@dataclass(slots=True)
class Assembly:
    """A network that was cut, and what runs it.

    Whatever reaches all stages from outside goes through here: what is asked of a stage and what it
    answers is plain data and tensors, so that stages may live in other processes.

    Attributes:
        cuts: Modules that the network was cut before.
        clip_norm: Largest norm of a gradient over all stages, which then learn one sample at a
            time; None where each stage clips by itself or none does.
        modes: Training mode of every module when it was cut; code between layers is traced in it.
    """

    module: nn.Module
    cuts: tuple[str, ...]
    stages: list[Stage]
    executor: Executor
    clip_norm: float | None
    modes: tuple[bool, ...]

    @property
    def clips_network(self) -> bool:
        """Whether updates wait until the gradients of all stages are known."""
        return self.stages[0].defers_updates

    @property
    def counters(self) -> dict[str, Any]:
        """What happened so far: updates and skipped samples by stage, streams forgotten."""
        return {
            "updates": [stage.updates.made for stage in self.stages],
            "skipped": [stage.updates.skipped for stage in self.stages],
            "forgotten": max(stage.states.forgotten for stage in self.stages),
        }

    def save(self) -> dict[str, Any]:
        """Return what the stages, which are drained, know beside weights and counters."""
        return saving.join([saving.save(stage) for stage in self.stages])

    def load(self, saved: dict[str, Any]) -> None:
        """Give the stages what :meth:`save` returned and the counters, from any number of them."""
        for stage, part in zip(self.stages, saving.split(saved, len(self.stages)), strict=True):
            saving.load(stage, part)

    def learn_alone(self, arrival: Activation) -> list[Result]:
        """Send one sample, and update all stages when all their gradients are known.

        Raises:
            StageError: A stage raised.
        """
        results = self.executor.exchange([arrival], 1)
        self.executor.exchange([Drain()], len(self.stages))
        updates = [stage.updates for stage in self.stages]
        if arrival.sample.is_learned and all(own.is_offered for own in updates):
            try:
                self._update_together()
            except Exception as error:
                raise failure(self.stages[0], "update", arrival.sample.number, error) from error
        for own in updates:
            own.withdraw()
        return results

    def _update_together(self) -> None:
        updates = [stage.updates for stage in self.stages]
        is_complete = [own.accept() for own in updates]
        if not all(is_complete):
            return
        assert self.clip_norm is not None
        clip(updates, self.clip_norm)
        for stage in self.stages:
            stage.apply()

    @contextmanager
    def in_its_modes(self) -> Iterator[None]:
        """Put every module into the mode in which the network was cut, for what is in flight."""
        parts = list(self.module.modules())
        changed = modes(self.module)
        for part, mode in zip(parts, self.modes, strict=True):
            part.training = mode
        try:
            yield
        finally:
            for part, mode in zip(parts, changed, strict=True):
                part.training = mode

    def has_new_modes(self) -> bool:
        """Say whether a module went into training or evaluation mode since the network was cut."""
        return modes(self.module) != self.modes

    def cut_again(self) -> None:
        """Cut the network, which is drained, as its modules' modes are now."""
        cut = partition(self.module, self.cuts)
        for stage, module in zip(self.stages, cut.modules, strict=True):
            stage.replace(module, self.module)
        self.modes = modes(self.module)


def modes(module: nn.Module) -> tuple[bool, ...]:
    """Return the training mode of every module of a network."""
    return tuple(part.training for part in module.modules())


def check_options(module: nn.Module, **given: Any) -> None:
    """Check what can be checked of options and a network before anything is built.

    Args:
        module: The network, possibly on the meta device.
        given: What :class:`~streamflow.pipeline.Pipeline` takes beside it.

    Raises:
        OptionError: An option cannot work.
        PartitionError: The network cannot be cut as asked.
    """
    options = Options(**given)
    check_groups(module, options)
    spread(options.devices, 1)
    initial = initial_state(module, options.state)
    if isinstance(options.stages, str):
        return
    cut = partition(module, options.stages)
    options.check_num_stages(len(cut.modules))
    _check_states(cut, initial)


def assemble(
    module: nn.Module, cuts: Sequence[str], executor: str, options: Options, initial: Set
) -> Assembly:
    """Cut a network and build its stages.

    Args:
        module: The network; its tensors move to the devices of their stages.
        cuts: Modules to cut before.
        executor: ``inline`` or ``threads``.
        options: What the caller asked for.
        initial: What a new stream's recurrent state begins with.

    Raises:
        OptionError: Options do not fit so many stages.
        PartitionError: There is no such cut.
    """
    num_stages = len(cuts) + 1
    options.check_num_stages(num_stages)
    cut = partition(module, cuts)
    _check_states(cut, initial)
    for part, device in zip(cut.modules, spread(options.devices, num_stages), strict=True):
        if device is not None:
            move(part, module, device)
    own_orders = orders(options.schedule, num_stages)
    lanes = _lanes(module, cut)
    stages = [
        _stage(module, cut, index, order, lane, options, initial)
        for index, (order, lane) in enumerate(zip(own_orders, lanes, strict=True))
    ]
    kind = ThreadsExecutor if executor == "threads" else InlineExecutor
    runner = kind(stages, own_orders)
    return Assembly(module, tuple(cuts), stages, runner, options.clip_norm, modes(module))


def _lanes(module: nn.Module, cut: Partition) -> list[Lane]:
    """Give every stage a lane on its own device; one without tensors follows the one before it."""
    lanes, device = [], device_of(module)
    for part in cut.modules:
        has_tensors = any(True for _ in part.parameters()) or any(True for _ in part.buffers())
        device = device_of(part) if has_tensors else device
        lanes.append(Lane(device))
    return lanes


def _stage(
    module: nn.Module,
    cut: Partition,
    index: int,
    order: Order,
    lane: Lane,
    options: Options,
    initial: Mapping[str, torch.Tensor],
) -> Stage:
    part, is_last = cut.modules[index], index == len(cut.modules) - 1
    defers_updates = options.clips_network(len(cut.modules))
    return Stage(
        part,
        index=index,
        name=cut.names[index],
        lag=order.lag,
        may_keep=order.is_greedy,
        backward=options.backward,
        loss=options.loss if is_last else None,
        has_target=options.loss is not None and checks.takes_target(options.loss),
        updates=Updates(
            dict(part.named_parameters()),
            options,
            index,
            clip_norm=None if defers_updates else options.clip_norm,
        ),
        states=States(part, module, dict(initial), options.max_keys),
        randomness=Randomness(options.seed, index, lane.device),
        lane=lane,
        allow_nonfinite=options.allow_nonfinite,
        defers_updates=defers_updates,
        shared_buffers=_shared_buffers(cut, index),
    )


def _shared_buffers(cut: Partition, index: int) -> list[str]:
    """Name the buffers of a stage that other stages use, too."""
    others = {
        name
        for other, part in enumerate(cut.modules)
        if other != index
        for name, _ in part.named_buffers()
    }
    return [name for name, _ in cut.modules[index].named_buffers() if name in others]


def _check_states(cut: Partition, initial: Set) -> None:
    for name in initial:
        users = [i for i, part in enumerate(cut.modules) if name in dict(part.named_buffers())]
        if len(users) > 1:
            msg = (
                f"stages: expected recurrent state in one stage, got {name} in stages {users}; "
                "cut elsewhere, or use what the earlier stage returns"
            )
            raise PartitionError(msg)

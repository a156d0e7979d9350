"""Learning by compiled code, several samples a call, on the tensors that eager learning uses."""

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from streamflow.pipeline.inductor import Routine
from streamflow.pipeline.recording import Buffer, Recording, Unsupported, baked
from streamflow.pipeline.stage import Stage
from streamflow.pipeline.unrolling import num_backup, spec_of
from streamflow.pipeline.updates import settings_of

# Calls that are measured, fewer where they take long: the stream waits.
_MEASURED = 10
_MEASURED_SECONDS = 0.05


@dataclass(slots=True)
class _Bound:
    """The tensors that code works on while nothing replaces them.

    Attributes:
        held: As the recording has them.
        addresses: Where they lie.
        backup: Memory for what is written.
        counters: The optimizer's counts of steps.
        steps: What they say, by group.
    """

    held: list[Tensor]
    addresses: list[int]
    backup: list[Tensor]
    counters: list[Tensor]
    steps: list[int]


class CompiledStage:
    """The only stage of a pipeline, as far as compiled code runs it.

    Attributes:
        recording: What the code does.
        routines: The code by the number of samples that it learns in a call.
    """

    def __init__(self, stage: Stage, recording: Recording) -> None:
        self.recording = recording
        self.routines: dict[int, Routine] = {}
        self._stage = stage
        optimizer = stage.updates.optimizer
        assert optimizer is not None
        self._optimizer = optimizer
        self._specs = [spec_of(tensor) for tensor in recording.arguments]
        self._bound: _Bound | None = None
        self._backup: list[Tensor] = []
        self._constant_factors: dict[Any, Tensor] = {}

    def __repr__(self) -> str:
        return f"<CompiledStage: calls of {', '.join(map(str, self.routines)) or 'nothing yet'}>"

    def prepare(self) -> None:
        """Take in what has changed since the last call; before a run of calls.

        Raises:
            Unsupported: The code no longer fits.
        """
        if baked(self._optimizer) != self.recording.settings:
            msg = "settings of the optimizer change beside its learning rate"
            raise Unsupported(msg)
        bound = self._bound
        if bound is not None:
            now = [place().data_ptr() for place in self.recording.held]
            if now != bound.addresses:
                bound = None
        self._bound = bound or self._bind()

    def release(self) -> None:
        """Expect that something else counts steps or replaces tensors."""
        self._bound = None

    def learn(self, size: int, samples: Sequence[Tensor]) -> list[Tensor] | None:
        """Learn from ``size`` samples and return the tensors of their outputs.

        A single sample that is not finite is skipped, as in eager learning. Returns None, and
        leaves everything as it was, where one of several is not.
        """
        bound, updates = self._bound, self._stage.updates
        assert bound is not None
        schedule = _Schedule(self._optimizer, updates.scheduler)
        factors = self._factors(size, bound.steps, schedule)
        outputs = self._call(size, bound.held, bound.backup, factors, samples)
        if self.recording.layout.is_checked and not math.isfinite(outputs.pop()):
            schedule.undo()
            if size == 1:
                updates.skipped += 1
                return outputs
            for index, tensor in zip(self.recording.layout.written, bound.backup, strict=True):
                bound.held[index].copy_(tensor)
            return None
        if bound.counters:
            torch._foreach_add_(bound.counters, size)
            bound.steps = [count + size for count in bound.steps]
        updates.made += size
        return outputs

    def rehearse(self, size: int, samples: Sequence[Tensor]) -> list[Tensor] | None:
        """Return the outputs of samples and what would be written, and change nothing.

        Returns None where something was not finite.
        """
        held, outputs = self._call_on_copies(size, samples, 1)
        if self.recording.layout.is_checked and not math.isfinite(outputs.pop()):
            return None
        return [*outputs, *(held[index] for index in self.recording.layout.written)]

    def measure(self, size: int, samples: Sequence[Tensor]) -> float:
        """Return the seconds of a call; change nothing."""
        times: list[float] = []
        self._call_on_copies(size, samples, _MEASURED, times)
        return min(times)

    def _call_on_copies(
        self, size: int, samples: Sequence[Tensor], count: int, times: list[float] | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        bound = self._bound
        assert bound is not None
        schedule = _Schedule(self._optimizer, self._stage.updates.scheduler)
        factors = self._factors(size, bound.steps, schedule)
        schedule.undo()
        held = [tensor.clone() for tensor in bound.held]
        backup = [tensor.clone() for tensor in bound.backup]
        outputs: list[Tensor] = []
        for _ in range(count):
            start = time.perf_counter()
            outputs = self._call(size, held, backup, factors, samples)
            if times is not None:
                times.append(time.perf_counter() - start)
                if sum(times) > _MEASURED_SECONDS:
                    break
        return held, outputs

    def written(self) -> list[Tensor]:
        """Return what is written as it is now."""
        places = self.recording.held
        return [places[index]().detach() for index in self.recording.layout.written]

    def _call(
        self,
        size: int,
        held: list[Tensor],
        backup: list[Tensor],
        factors: Tensor,
        samples: Sequence[Tensor],
    ) -> list[Tensor]:
        kept = backup[: num_backup(self.recording.layout, size)]
        constants = self.recording.constants
        return self.routines[size]([*held, *kept, *constants, factors, *samples])

    def _factors(self, size: int, steps: Sequence[int], schedule: "_Schedule") -> Tensor:
        """Return the factors (samples, groups, factors) of the next updates."""
        if not schedule and not self.recording.formula.counts:
            key = (size, schedule.rates())
            if key not in self._constant_factors:
                self._constant_factors = {key: self._factors_of([key[1]] * size, steps)}
            return self._constant_factors[key]
        rates = []
        for _ in range(size):
            rates.append(schedule.rates())
            schedule.step()
        if schedule and baked(self._optimizer) != self.recording.settings:
            schedule.undo()
            msg = "the schedule changes more of the optimizer than its learning rate"
            raise Unsupported(msg)
        return self._factors_of(rates, steps)

    def _factors_of(self, rates: Sequence[Sequence[float]], steps: Sequence[int]) -> Tensor:
        recording = self.recording
        rows = [
            [
                recording.formula.factors(rate, step + k, settings)
                for rate, step, settings in zip(row, steps, recording.settings, strict=True)
            ]
            for k, row in enumerate(rates, start=1)
        ]
        position = recording.layout.held + recording.layout.constants
        return torch.tensor(rows, dtype=recording.arguments[position].dtype)

    def _bind(self) -> _Bound:
        recording = self.recording
        used = {tensor.untyped_storage().data_ptr() for tensor in recording.constants}
        for place, spec in zip(recording.held, self._specs, strict=False):
            tensor = place()
            address = tensor.untyped_storage().data_ptr()
            fits = spec_of(tensor) == spec and (address not in used or not tensor.numel())
            if not fits:
                if not isinstance(place, Buffer):
                    msg = "parameters share memory, or have another shape or dtype than before"
                    raise Unsupported(msg)
                place.put(_renewed(tensor, spec))
                address = place().untyped_storage().data_ptr()
            used.add(address)
        held = [place().detach() for place in recording.held]
        if not self._backup and recording.layout.is_checked:
            specs = [self._specs[index] for index in recording.layout.written]
            self._backup = [torch.empty_strided(*spec[:2], dtype=spec[2]) for spec in specs]
        counters = [[self._counter(p) for p in group] for group in recording.counted]
        steps = [{int(counter) for counter in group} or {0} for group in counters]
        if any(len(found) > 1 for found in steps):
            msg = "parameters of a group have made different numbers of steps"
            raise Unsupported(msg)
        return _Bound(
            held,
            [tensor.data_ptr() for tensor in held],
            self._backup,
            [counter for group in counters for counter in group],
            [found.pop() for found in steps],
        )

    def _counter(self, parameter: Tensor) -> Tensor:
        counter: Tensor = self._optimizer.state[parameter]["step"]
        return counter


class _Schedule:
    """The learning rates of an optimizer: a schedule, or none, that can go back to where it was."""

    def __init__(self, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
        self._groups, self._scheduler = optimizer.param_groups, scheduler
        if scheduler is not None:
            self._state = copy.deepcopy(scheduler.state_dict())
            self._settings = [settings_of(group) for group in self._groups]

    def __bool__(self) -> bool:
        return self._scheduler is not None

    def rates(self) -> tuple[float, ...]:
        return tuple(float(group["lr"]) for group in self._groups)

    def step(self) -> None:
        if self._scheduler is not None:
            self._scheduler.step()

    def undo(self) -> None:
        if self._scheduler is None:
            return
        self._scheduler.load_state_dict(self._state)
        for group, settings in zip(self._groups, self._settings, strict=True):
            group.update(settings)


def _renewed(tensor: Tensor, spec: Any) -> Tensor:
    """Return a copy of a buffer that lies in memory as the code expects it."""
    shape, strides, dtype = spec
    if tensor.shape != shape or tensor.dtype != dtype:
        msg = "a buffer has another shape or dtype than before"
        raise Unsupported(msg)
    return torch.empty_strided(shape, strides, dtype=dtype).copy_(tensor.detach())

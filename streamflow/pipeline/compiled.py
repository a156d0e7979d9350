"""Learning by compiled code, several samples a call, on the tensors that eager learning uses."""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from streamflow.pipeline.compilation import spec_of
from streamflow.pipeline.recording import Buffer, Recording, Unsupported, baked
from streamflow.pipeline.routines import Routine
from streamflow.pipeline.stage import Stage
from streamflow.pipeline.updates import settings_of


@dataclass(slots=True)
class _Bound:
    """The tensors that code works on while nothing replaces them.

    Attributes:
        held: As the recording has them, and the constants.
        addresses: Where they lie.
        counters: The optimizer's counts of steps.
        steps: What they say, by group.
    """

    held: list[Tensor]
    addresses: list[int]
    counters: list[Tensor]
    steps: list[int]


class CompiledStage:
    """The only stage of a pipeline, as far as compiled code runs it.

    Attributes:
        recording: What the code does.
        routine: The code, once it is there.
    """

    def __init__(self, stage: Stage, recording: Recording) -> None:
        self.recording = recording
        self.routine: Routine | None = None
        self._stage = stage
        optimizer = stage.updates.optimizer
        assert optimizer is not None
        self._optimizer = optimizer
        self._specs = [spec_of(tensor) for tensor in recording.arguments]
        self._bound: _Bound | None = None
        self._constant_factors: dict[Any, Tensor] = {}

    def __repr__(self) -> str:
        return f"<CompiledStage: calls of {self.routine.takes if self.routine else 'nothing yet'}>"

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

    def learn(self, samples: Sequence[Tensor], count: int) -> tuple[list[Tensor], int]:
        """Learn from samples in order, until one is not finite.

        Args:
            samples: Inputs, targets and weights (count, ...).
            count: How many.

        Returns:
            Outputs of those that were taken, and how many these are; the last may have been passed
            over, as in eager learning.
        """
        bound, updates = self._bound, self._stage.updates
        assert bound is not None
        schedule = _Schedule(self._optimizer, updates.scheduler)
        factors = self._factors(count, bound.steps, schedule)
        outputs, done, is_skipped = self._call(bound.held, factors, samples, count)
        made = done - is_skipped
        if made < count:
            schedule.undo()
            for _ in range(made):
                schedule.step()
        if bound.counters and made:
            torch._foreach_add_(bound.counters, made)
            bound.steps = [step + made for step in bound.steps]
        updates.made += made
        updates.skipped += is_skipped
        return outputs if done == count else [tensor[:done] for tensor in outputs], done

    def rehearse(
        self, samples: Sequence[Tensor], count: int, at_once: int
    ) -> tuple[list[Tensor] | None, float]:
        """Learn samples on copies of all that is written, so many at once.

        Returns:
            Their outputs and what would be written, or None where something was not finite; and
            the seconds that it took.
        """
        bound = self._bound
        assert bound is not None
        schedule = _Schedule(self._optimizer, self._stage.updates.scheduler)
        factors = self._factors(count, bound.steps, schedule)
        schedule.undo()
        held = [tensor.clone() for tensor in bound.held]
        parts: list[list[Tensor]] = []
        start = time.perf_counter()
        for first in range(0, count, at_once):
            rows = [tensor[first : first + at_once] for tensor in (factors, *samples)]
            outputs, _, is_skipped = self._call(held, rows[0], rows[1:], len(rows[0]))
            if is_skipped:
                return None, time.perf_counter() - start
            parts.append(outputs)
        seconds = time.perf_counter() - start
        joined = [torch.cat(column) for column in zip(*parts, strict=True)]
        return [*joined, *(held[index] for index in self.recording.layout.written)], seconds

    def written(self) -> list[Tensor]:
        """Return what is written as it is now."""
        places = self.recording.held
        return [places[index]().detach() for index in self.recording.layout.written]

    def _call(
        self, held: list[Tensor], factors: Tensor, samples: Sequence[Tensor], count: int
    ) -> tuple[list[Tensor], int, bool]:
        assert self.routine is not None
        outputs = [torch.empty(count, *shape, dtype=dtype) for shape, dtype in self.recording.kinds]
        done, is_skipped = self.routine.learn(held, [factors, *samples], outputs, count)
        return outputs, done, is_skipped

    def _factors(self, count: int, steps: Sequence[int], schedule: "_Schedule") -> Tensor:
        """Return the factors (samples, groups, factors) of the next updates."""
        if not schedule and not self.recording.formula.counts:
            key = (count, schedule.rates())
            if key not in self._constant_factors:
                self._constant_factors = {key: self._factors_of([key[1]], steps, count)}
            return self._constant_factors[key]
        if not schedule:
            return self._factors_of([schedule.rates()], steps, count)
        rates = []
        for _ in range(count):
            rates.append(schedule.rates())
            schedule.step()
        if baked(self._optimizer) != self.recording.settings:
            schedule.undo()
            msg = "the schedule changes more of the optimizer than its learning rate"
            raise Unsupported(msg)
        return self._factors_of(rates, steps, count)

    def _factors_of(
        self, rates: Sequence[Sequence[float]], steps: Sequence[int], count: int
    ) -> Tensor:
        """Return factors from learning rates (samples or one, groups) and steps made so far."""
        recording = self.recording
        numbers = torch.arange(1, count + 1, dtype=torch.float64)
        groups = []
        for rate, step, settings in zip(
            torch.tensor(rates, dtype=torch.float64).unbind(1),
            steps,
            recording.settings,
            strict=True,
        ):
            found = recording.formula.factors(rate, numbers + step, settings)
            groups.append(torch.stack([factor.expand(count) for factor in found], -1))
        position = recording.layout.held + recording.layout.constants
        return torch.stack(groups, 1).to(recording.arguments[position].dtype)

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
        counters = [[self._counter(p) for p in group] for group in recording.counted]
        steps = [{int(counter) for counter in group} or {0} for group in counters]
        if any(len(found) > 1 for found in steps):
            msg = "parameters of a group have made different numbers of steps"
            raise Unsupported(msg)
        return _Bound(
            [*held, *recording.constants],
            [tensor.data_ptr() for tensor in held],
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

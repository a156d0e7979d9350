"""A stage that runs as compiled code, on the tensors that eager learning uses."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from streamflow.pipeline import torch_private
from streamflow.pipeline.capture.held_tensors import Buffer, Unsupported, settings_without_rates
from streamflow.pipeline.capture.recording import Recording
from streamflow.pipeline.capture.tensor_spec import TensorSpec
from streamflow.pipeline.native.rings import Work
from streamflow.pipeline.stages.stage import Stage
from streamflow.pipeline.stages.updates import settings_of


@dataclass(slots=True)
class _Bound:
    """The tensors that code works on while nothing replaces them.

    Attributes:
        held: As the recording has them.
        learn: These and the constants of learning.
        forward: Likewise of the forward.
        addresses: Where they lie.
        counters: The optimizer's counts of steps.
        steps: What they say, by group.
        work: What code last got of all this.
    """

    held: list[Tensor]
    learn: list[Tensor]
    forward: list[Tensor]
    addresses: list[int]
    counters: list[Tensor]
    steps: list[int]
    work: Work | None = None


class CompiledStage:
    """What compiled code of a stage works on, and what it leaves behind.

    Attributes:
        stage: The stage.
        recording: What the code does.
    """

    def __init__(self, stage: Stage, recording: Recording) -> None:
        self.stage = stage
        self.recording = recording
        self._optimizer = stage.updates.optimizer if recording.held.formula is not None else None
        self._specs = [TensorSpec.of(tensor) for tensor in recording.learn.arguments]
        self._bound: _Bound | None = None
        self._constant_factors: dict[Any, Tensor] = {}

    def __repr__(self) -> str:
        return f"<CompiledStage {self.stage.index}>"

    def prepare(self) -> None:
        """Take in what has changed since the last call; before a run of calls.

        Raises:
            Unsupported: The code no longer fits.
        """
        self._check_settings("settings of the optimizer change beside its learning rate")
        bound = self._bound
        if bound is not None:
            now = [place().data_ptr() for place in self.recording.held.places]
            if now != bound.addresses:
                bound = None
        self._bound = bound or self._bind()

    def release(self) -> None:
        """Expect that something else counts steps or replaces tensors."""
        self._bound = None

    def work(self, updates: int) -> Work:
        """Return what a call works on that makes so many updates at most."""
        bound = self._bound
        assert bound is not None
        factors = self._factors(updates, bound.steps)
        if bound.work is None or factors is not bound.work.factors:
            bound.work = Work(bound.learn, bound.forward, factors)
        return bound.work

    def copy_of(self, work: Work) -> Work:
        """Return the same work on copies of all that is written."""
        count = len(self.recording.held.places)
        held = [tensor.clone() for tensor in work.learn[:count]]
        return Work([*held, *work.learn[count:]], [*held, *work.forward[count:]], work.factors)

    def finish(self, made: int, skipped: int) -> None:
        """Take in how many updates a call made, and how many samples it passed over."""
        bound = self._bound
        assert bound is not None
        updates = self.stage.updates
        if updates.scheduler is not None:
            for _ in range(made):
                updates.scheduler.step()
        if bound.counters and made:
            torch_private.add_to_all(bound.counters, made)
            bound.steps = [step + made for step in bound.steps]
        updates.made += made
        updates.skipped += skipped

    def written(self, held: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Return what code writes, among ``held`` or as it is now."""
        recording = self.recording
        indices = sorted(
            {index for program in recording.programs for index in program.layout.written}
        )
        if held is None:
            return [recording.held.places[index]().detach() for index in indices]
        return [held[index] for index in indices]

    def _factors(self, count: int, steps: Sequence[int]) -> Tensor:
        """Return the factors (updates, groups, factors) of the next updates, or one for all."""
        formula, scheduler = self.recording.held.formula, self.stage.updates.scheduler
        if self._optimizer is None or formula is None:
            return torch.zeros(1, 0, 0)
        if scheduler is not None:
            return self._factors_of(self._coming_rates(scheduler, count), steps, count)
        rates = self._rates()
        if formula.counts:
            return self._factors_of([rates], steps, count)
        if rates not in self._constant_factors:
            self._constant_factors = {rates: self._factors_of([rates], steps, 1)}
        return self._constant_factors[rates]

    def _rates(self) -> tuple[float, ...]:
        assert self._optimizer is not None
        return tuple(float(group["lr"]) for group in self._optimizer.param_groups)

    def _coming_rates(self, scheduler: Any, count: int) -> list[tuple[float, ...]]:
        """Return the rates of so many updates; the schedule is then where it was."""
        assert self._optimizer is not None
        groups = self._optimizer.param_groups
        state = copy.deepcopy(scheduler.state_dict())
        settings = [settings_of(group) for group in groups]
        rates = []
        for _ in range(count):
            rates.append(self._rates())
            scheduler.step()
        try:
            self._check_settings("the schedule changes more of the optimizer than its rate")
        finally:
            scheduler.load_state_dict(state)
            for group, before in zip(groups, settings, strict=True):
                group.update(before)
        return rates

    def _check_settings(self, msg: str) -> None:
        if self._optimizer is None:
            return
        if settings_without_rates(self._optimizer) != self.recording.held.settings:
            raise Unsupported(msg)

    def _factors_of(
        self, rates: Sequence[Sequence[float]], steps: Sequence[int], count: int
    ) -> Tensor:
        """Return factors from learning rates (samples or one, groups) and steps made so far."""
        recording = self.recording
        assert recording.held.formula is not None
        numbers = torch.arange(1, count + 1, dtype=torch.float64)
        groups = []
        for rate, step, settings in zip(
            torch.tensor(rates, dtype=torch.float64).unbind(1),
            steps,
            recording.held.settings,
            strict=True,
        ):
            found = recording.held.formula.factors(rate, numbers + step, settings)
            groups.append(torch.stack([factor.expand(count) for factor in found], -1))
        layout = recording.learn.layout
        dtype = recording.learn.arguments[layout.held + layout.constants].dtype
        return torch.stack(groups, 1).to(dtype)

    def _bind(self) -> _Bound:
        recording = self.recording
        used = {
            tensor.untyped_storage().data_ptr()
            for program in recording.programs
            for tensor in program.constants
        }
        for place, spec in zip(recording.held.places, self._specs, strict=False):
            tensor = place()
            address = tensor.untyped_storage().data_ptr()
            fits = TensorSpec.of(tensor) == spec and (address not in used or not tensor.numel())
            if not fits:
                if not isinstance(place, Buffer):
                    msg = "parameters share memory, or have another shape or dtype than before"
                    raise Unsupported(msg)
                place.put(_renewed(tensor, spec))
                address = place().untyped_storage().data_ptr()
            used.add(address)
        held = [place().detach() for place in recording.held.places]
        counters = [[self._counter(p) for p in group] for group in recording.counted]
        steps = [{int(counter) for counter in group} or {0} for group in counters]
        if any(len(found) > 1 for found in steps):
            msg = "parameters of a group have made different numbers of steps"
            raise Unsupported(msg)
        return _Bound(
            held,
            [*held, *recording.learn.constants],
            [*held, *recording.forward.constants],
            [tensor.data_ptr() for tensor in held],
            [counter for group in counters for counter in group],
            [found.pop() for found in steps],
        )

    def _counter(self, parameter: Tensor) -> Tensor:
        assert self._optimizer is not None
        counter: Tensor = self._optimizer.state[parameter]["step"]
        return counter


def _renewed(tensor: Tensor, spec: TensorSpec) -> Tensor:
    """Return a copy of a buffer that lies in memory as the code expects it."""
    if tensor.shape != spec.shape or tensor.dtype != spec.dtype:
        msg = "a buffer has another shape or dtype than before"
        raise Unsupported(msg)
    return spec.empty().copy_(tensor.detach())

"""The worker loop: one stage between two links, the same in every executor."""

import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

from torch import nn

from streamflow.errors import OptionError, StageError
from streamflow.pipeline.running.timeline import Event, Record
from streamflow.pipeline.schedule import Action, Order
from streamflow.pipeline.stages.lanes import Ready
from streamflow.pipeline.stages.messages import (
    Activation,
    Arrival,
    Drain,
    Drained,
    Gradient,
    Message,
    Output,
    Peek,
    Result,
    Settle,
    Settled,
    Upward,
)
from streamflow.pipeline.stages.stage import Held, Stage

BATCHES = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)
# What these layers say of a batch of one whose channels hold a single value.
ONE_VALUE = ("more than 1 value per channel", "more than 1 spatial element")

# The last stage's gradients come from its own loss.
_FROM_LOSS = Gradient([])
_EMPTY = Gradient(None)


class Worker:
    """Performs the actions of one stage, one at a time.

    Attributes:
        down: Where activations go; None in the last stage, which reports outputs instead.
        up: Where gradients go; None in the first stage.
        record: Told of every action while somebody watches.
    """

    def __init__(self, stage: Stage, order: Order, *, report: Callable[[Result], None]) -> None:
        self.stage = stage
        self.order = order
        self.down: Callable[[Arrival], None] | None = None
        self.up: Callable[[Upward], None] | None = None
        self.record: Record | None = None
        self._report = report
        self._is_host = stage.lane.is_host
        self._arrivals: deque[Arrival] = deque()
        self._gradients: deque[Gradient] = deque()
        self._held: deque[Held] = deque()
        self._is_draining = self._is_settling = self._is_behind_settled = False

    def __repr__(self) -> str:
        waiting = f"{len(self._arrivals)} arrivals and {len(self._gradients)} gradients waiting"
        return f"<Worker of stage {self.stage.index}: {len(self._held)} held, {waiting}>"

    @property
    def num_held(self) -> int:
        """Count of samples between forward and backward."""
        return len(self._held)

    def receive(self, message: Message) -> None:
        """Take in what a neighbour sent."""
        if isinstance(message, Gradient):
            self._gradients.append(message)
        elif isinstance(message, Settled):
            self._is_behind_settled = True
        else:
            self._arrivals.append(message)

    @property
    def in_flight(self) -> tuple[list[Held], list[Gradient]]:
        """Samples between forward and backward, oldest first, and gradients that came for them."""
        return list(self._held), list(self._gradients)

    def replace(self, held: Iterable[Held], gradients: Iterable[Gradient]) -> None:
        """Have other samples in flight; the worker must be at rest."""
        self._held, self._gradients = deque(held), deque(gradients)

    def advance(self) -> bool:
        """Perform the next action, or return False where it must wait for a message.

        Raises:
            StageError: The stage raised; the original is the cause.
        """
        if not self._arrivals and not self._gradients:
            self._settle()
            return False
        action = self.order.next_action(
            len(self._held),
            has_arrival=bool(self._arrivals),
            has_gradient=bool(self._gradients),
            is_draining=self._is_draining,
        )
        if action is Action.WAIT:
            self._settle()
            return False
        if self.record is None:
            self._perform(action)
        else:
            self._perform_recorded(action, self.record)
        if self._is_draining and not self._held:
            self._is_draining = False
            self._report(Drained())
        return True

    def _perform(self, action: Action) -> None:
        # On the CPU a lane is nothing to enter or to wait for.
        context = nullcontext() if self._is_host else self.stage.lane.enter()
        with context:
            if action is Action.BACKWARD:
                self._backward(self._held.popleft(), self._gradients.popleft())
                return
            arrival = self._arrivals.popleft()
            if isinstance(arrival, Activation):
                self._forward(arrival)
            else:
                self._take(arrival)

    def _bring(self, values: Any, ready: Ready) -> Any:
        """Return values of a neighbour for use here."""
        return values if self._is_host and ready is None else self.stage.lane.bring(values, ready)

    def _ready(self) -> Ready:
        """Return when all that was started here is done."""
        return None if self._is_host else self.stage.lane.ready()

    def _perform_recorded(self, action: Action, record: Record) -> None:
        arrival = self._held[0] if action is Action.BACKWARD else self._arrivals[0]
        start = time.perf_counter()
        self._perform(action)
        if isinstance(arrival, Held | Activation):
            name, number = action.name.lower(), arrival.sample.number
            record(Event(self.stage.index, name, number, start, time.perf_counter()))

    def _take(self, arrival: Peek | Drain | Settle) -> None:
        if isinstance(arrival, Peek):
            self._peek(arrival)
            return
        if isinstance(arrival, Settle):
            self._is_settling = True
        else:
            self._is_draining = True
        if self.down is not None:
            self.down(arrival)

    def _settle(self) -> None:
        """Tell that nothing is left to do, where that is asked for and holds behind it."""
        if not self._is_settling or (self.down is not None and not self._is_behind_settled):
            return
        self._is_settling = self._is_behind_settled = False
        if self.up is not None:
            self.up(Settled())
        self._report(Settled())

    def _forward(self, arrival: Activation) -> None:
        sample = arrival.sample
        try:
            values = self._bring(arrival.values, arrival.ready)
            outputs, held = self.stage.forward(sample, values)
        except Exception as error:
            raise failure(self.stage, "forward", sample.number, error) from error
        self._held.append(held)
        if self.down is not None:
            self.down(Activation(sample, outputs, self._ready()))
        else:
            self._report(Output(outputs, sample.steps, self._ready()))
            self._gradients.append(_FROM_LOSS if sample.is_learned else _EMPTY)

    def _backward(self, held: Held, gradient: Gradient) -> None:
        upward = _EMPTY
        try:
            if gradient.values is not None:
                values = self._bring(gradient.values, gradient.ready)
                upward = Gradient(self.stage.backward(held, values), self._ready())
            if self.up is not None:
                self.up(upward)
            if upward.values is not None:
                self.stage.update()
        except Exception as error:
            raise failure(self.stage, "backward", held.sample.number, error) from error

    def _peek(self, peek: Peek) -> None:
        outputs, error = peek.values, peek.error
        if error is None:
            try:
                outputs = self.stage.peek(self._bring(peek.values, peek.ready), peek.key)
            except Exception as raised:
                error = explained(self.stage.module, raised)
        if self.down is not None:
            self.down(Peek(outputs, peek.key, self._ready(), error))
        else:
            self._report(Output(outputs, ready=self._ready(), error=error))


def failure(stage: Stage, action: str, number: int, error: Exception) -> StageError:
    """Return what the caller gets where a stage raised."""
    return StageError(
        f"stage {stage.index} ({stage.name}), sample {number}: "
        f"expected {action} to succeed, got {type(error).__name__}: {error}; "
        "correct the cause and build a new pipeline, this one is broken"
    )


def unlike(stage: Stage, before: tuple[int, Any], now: tuple[int, Any]) -> StageError:
    """Return what the caller gets where two samples, each with its shapes, have unlike outputs."""
    return StageError(
        f"stage {stage.index} ({stage.name}), sample {now[0]}: expected an "
        f"output like that of sample {before[0]}, {before[1]}, got {now[1]}; "
        "make the network return one shape, or process such samples in calls of "
        "their own, with a new pipeline, as this one is broken"
    )


def explained(module: nn.Module, error: Exception) -> Exception:
    """Return the error of a stage, or one with a cure where the network itself is to blame."""
    if not any(what in str(error) for what in ONE_VALUE):
        return error
    names = [f"{type(m).__name__} {n}" for n, m in module.named_modules() if isinstance(m, BATCHES)]
    return OptionError(
        f"module: expected layers that learn from one sample at a time, got {', '.join(names)}, "
        "which would normalise a single value by itself; use nn.LayerNorm in its place, or put it "
        "into evaluation mode"
    )

"""A pipeline under a virtual clock: real workers and stages, in an order that durations decide.

Each stage has a device of its own. Every period one sample arrives and waits before the first
stage, in the place of the sample that waited there, which is then skipped. An idle stage chooses
its next action by its order from the messages that have arrived; the action takes effect when it
ends, and its messages are at the neighbours at that moment. Links cost nothing.

One stage, a forward (F) of 1 s and a backward (B) of 2 s, a sample every second:

    second      0   1   2   3   4   5   6   7
    arrives     0   1   2   3   4   5   6   7
    stage 0     F0  B0----  F2  B2----  F5  B5----  F7      1, 3, 4 and 6 are skipped

Shapes: N samples, R replicas, O outputs.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from streamflow.pipeline import Pipeline
from streamflow.pipeline.running.worker import Worker
from streamflow.pipeline.schedule import Action, Order, orders
from streamflow.pipeline.stages.messages import (
    Activation,
    Gradient,
    Message,
    Output,
    Result,
    Sample,
)
from streamflow.pipeline.stages.stage import Stage


@dataclass(frozen=True, slots=True)
class Durations:
    """How long one stage's actions take, in seconds.

    Attributes:
        forward: Of a new sample.
        backward: With update, where the stage has made no update since the sample's forward.
        late_backward: With update, where it has.
    """

    forward: float
    backward: float
    late_backward: float


@dataclass(frozen=True, slots=True)
class Answers:
    """What a stream was answered.

    Attributes:
        held_NRO: The sample's own prediction; for a skipped one, the newest that was there.
        fresh_NRO: The sample's own prediction; for a skipped one, that of the weights when it was
            given up, as if a forward cost nothing.
        is_taken_N: Whether the sample was predicted in time and learned.
    """

    held_NRO: Tensor
    fresh_NRO: Tensor
    is_taken_N: Tensor


class Station:
    """A worker with its virtual time: it sees messages when it is idle."""

    def __init__(
        self, stage: Stage, order: Order, durations: Durations, report: Callable[[Output], None]
    ) -> None:
        self.sent: list[tuple[int, Message]] = []
        self.inbox: deque[Message] = deque()
        self.is_busy = False
        self._report = report
        self._is_last = False
        self._durations = durations
        self._order = order
        self._worker = Worker(stage, order, report=self._finish)
        self._num_arrivals = self._num_gradients = self._num_updates = 0
        # Updates made before the forward of each sample that waits for its backward.
        self._updates_before: deque[int] = deque()

    def link(self, *, is_first: bool, is_last: bool) -> None:
        """Send to the neighbours that there are."""
        self._is_last = is_last
        self._worker.down = None if is_last else lambda message: self.sent.append((1, message))
        self._worker.up = None if is_first else lambda message: self.sent.append((-1, message))

    def can_forward(self) -> bool:
        """Whether a sample that arrived now would be forwarded now."""
        return not self.is_busy and self._choose(has_arrival=True) is Action.FORWARD

    def begin(self) -> float | None:
        """Begin the next action and return its duration, or None where there is none."""
        if self.is_busy:
            return None
        while self.inbox:
            message = self.inbox.popleft()
            self._num_gradients += isinstance(message, Gradient)
            self._num_arrivals += not isinstance(message, Gradient)
            self._worker.receive(message)
        action = self._choose(has_arrival=self._num_arrivals > 0)
        self.is_busy = action is not Action.WAIT
        if action is Action.FORWARD:
            return self._durations.forward
        if action is Action.BACKWARD:
            is_late = self._updates_before[0] != self._num_updates
            return self._durations.late_backward if is_late else self._durations.backward
        return None

    def end(self) -> None:
        """Perform the action that began; what it sends is in ``sent``."""
        num_held = self._worker.num_held
        assert self._worker.advance()
        self.is_busy = False
        if self._worker.num_held > num_held:
            self._num_arrivals -= 1
            self._updates_before.append(self._num_updates)
            self._num_gradients += self._is_last  # of its own loss
        else:
            self._num_gradients -= 1
            self._updates_before.popleft()
            self._num_updates += 1

    def _choose(self, *, has_arrival: bool) -> Action:
        return self._order.next_action(
            self._worker.num_held,
            has_arrival=has_arrival,
            has_gradient=self._num_gradients > 0,
            is_draining=False,
        )

    def _finish(self, result: Result) -> None:
        assert isinstance(result, Output)
        self._report(result)


class Clock:
    """Runs a pipeline's stages in virtual time; the pipeline itself must not be used any more.

    Args:
        pipeline: Whose stages learn.
        schedule: In which order.
        durations: Of every stage, first stage first.
    """

    def __init__(self, pipeline: Pipeline, schedule: str, durations: Sequence[Durations]) -> None:
        self._module = pipeline.module
        self._stations = [
            Station(stage, order, costs, self._answer)
            for stage, order, costs in zip(
                stages_of(pipeline), orders(schedule, len(durations)), durations, strict=True
            )
        ]
        for index, station in enumerate(self._stations):
            station.link(is_first=index == 0, is_last=index == len(durations) - 1)
        self._samples: Sequence[tuple[Tensor, Tensor]] = ()
        self._waiting: int | None = None
        self._ends: list[tuple[float, int]] = []
        self._in_flight: deque[int] = deque()
        self._newest: Tensor | None = None
        self._held: dict[int, Tensor] = {}
        self._fresh: dict[int, Tensor] = {}

    def run(self, inputs_NRD: Tensor, targets: Tensor, period: float) -> Answers:
        """Let sample n arrive at n times ``period`` seconds; return when all are answered."""
        self._samples = list(zip(torch.split(inputs_NRD, 1), torch.split(targets, 1), strict=True))
        numbers = range(len(self._samples))
        is_taken_N = torch.ones(len(numbers), dtype=torch.bool)
        for number in numbers:
            now = number * period
            self._pass_time(now)
            if self._waiting is not None:
                is_taken_N[self._waiting] = False
                self._skip(self._waiting)
            self._waiting = number
            self._let_in(now)
        self._pass_time(float("inf"))
        held, fresh = (
            torch.cat([answers[number] for number in numbers])
            for answers in (self._held, self._fresh)
        )
        return Answers(held, fresh, is_taken_N)

    def _pass_time(self, until: float) -> None:
        """End the actions that end by then, and begin what becomes possible."""
        while self._ends and self._ends[0][0] <= until:
            now, index = heapq.heappop(self._ends)
            station = self._stations[index]
            station.end()
            for step, message in station.sent:
                self._stations[index + step].inbox.append(message)
            station.sent.clear()
            for neighbour in range(max(index - 1, 0), min(index + 2, len(self._stations))):
                self._begin(now, neighbour)
            self._let_in(now)

    def _let_in(self, now: float) -> None:
        """Let the waiting sample in where the first stage would forward it now."""
        if self._waiting is None or not self._stations[0].can_forward():
            return
        x, target = self._samples[self._waiting]
        self._in_flight.append(self._waiting)
        self._stations[0].inbox.append(Activation(Sample(self._waiting, True, target), (x,)))
        self._waiting = None
        self._begin(now, 0)

    def _begin(self, now: float, index: int) -> None:
        duration = self._stations[index].begin()
        if duration is not None:
            heapq.heappush(self._ends, (now + duration, index))

    def _answer(self, output: Output) -> None:
        number = self._in_flight.popleft()
        self._newest = self._held[number] = self._fresh[number] = output.value

    def _skip(self, number: int) -> None:
        with torch.no_grad():
            self._fresh[number] = self._module(self._samples[number][0])
        # Before the first prediction there is only this one.
        self._held[number] = self._fresh[number] if self._newest is None else self._newest


def stages_of(pipeline: Pipeline) -> Sequence[Stage]:
    """Return the stages that a pipeline is made of."""
    assert pipeline._router is not None
    return pipeline._router.assembly.stages

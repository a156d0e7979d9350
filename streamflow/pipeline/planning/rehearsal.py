"""Pipelines on a copy of a network, fed one sample again and again to see what they cost.

Nothing of it reaches the caller's network, its gradients, its optimizer or the random generators.
On a busy machine a single measurement means little: whatever is compared is measured in turn, many
times, and of all times a low one counts.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any, Self, TypeVar

import torch
from torch import nn

from streamflow.errors import OptionError
from streamflow.pipeline import trees
from streamflow.pipeline.admission import Admission
from streamflow.pipeline.codegen.libraries import find_compiler
from streamflow.pipeline.options import Options
from streamflow.pipeline.planning.costs import Cost
from streamflow.pipeline.routing.compiled import MOST
from streamflow.pipeline.routing.router import Router
from streamflow.pipeline.routing.variants import AT_ONCE, EAGER_SO_FAR, ONLY_FOUND
from streamflow.pipeline.running.assembly import assemble
from streamflow.pipeline.running.timeline import Event
from streamflow.pipeline.stages.recurrence import Set
from streamflow.pipeline.stages.stage import Stage

T = TypeVar("T")

# Repetitions that a measurement has however little time it is given, unless they take long.
_ROUNDS = 4
_FEWEST_ROUNDS = 2
_LONG_SECONDS = 1.0
# Calls until compiled code is tried and in use; after one, everything eager is allocated.
_WARM_UP = 3
# Long enough that starting and stopping a clock does not matter.
_ROUND_SECONDS = 0.004
_MOST_SAMPLES = 32
# Which of all times counts: noise only ever adds to them, but the very lowest are rare luck.
_QUANTILE = 0.25


@dataclass(frozen=True, slots=True)
class Subject:
    """A network with one sample, to be copied and measured.

    Attributes:
        module: The network; it stays as it is.
        sample: One input with a leading dimension of 1, as the pipeline takes it.
        target: Its target, None where the loss takes none.
        options: How the pipeline would be built.
        initial: Recurrent state that a stream begins with.
    """

    module: nn.Module
    sample: Any
    target: Any
    options: Options
    initial: Set

    def copy(self) -> Self:
        """Return the same with a copy of the network.

        Raises:
            OptionError: The network cannot be copied.
        """
        try:
            module = copy.deepcopy(self.module)
        except Exception as error:  # a module may hold anything
            msg = (
                f"stages: expected {type(self.module).__name__} to be copied by copy.deepcopy, so "
                f"that measuring it leaves no trace, got {type(error).__name__}: {error}; define "
                "__deepcopy__, or pass stages=1 or the names of modules to cut before"
            )
            raise OptionError(msg) from error
        module.zero_grad()
        return replace(self, module=module)


class Rehearsal:
    """One way to run a network, on a copy that other rehearsals may share.

    Args:
        subject: The network; its weights change.
        cuts: Modules to cut before.
        executor: ``inline`` or ``threads``.
        may_compile: Whether it learns by compiled code, as a pipeline would, where the options ask
            for that or it is on disk.
        changes: Options that differ from those of the subject.

    Raises:
        OptionError: The options do not fit so many stages.
        PartitionError: There is no such cut.
        SampleError: The sample does not fit the network.
    """

    def __init__(
        self,
        subject: Subject,
        cuts: Sequence[str],
        executor: str,
        *,
        may_compile: bool = False,
        **changes: Any,
    ) -> None:
        options = replace(subject.options, executor=executor, **changes)
        if not may_compile or options.loss is None:
            options = replace(options, compile=False)
        assembly = assemble(subject.module, cuts, executor, options, subject.initial)
        patience = AT_ONCE if options.compile is True else ONLY_FOUND
        self._router = Router(assembly, options, patience, warns=False)
        self._admission = Admission(
            options.loss,
            input_device=self.stages[0].lane.device,
            output_device=self.stages[-1].lane.device,
            has_state=bool(subject.initial),
            predict=lambda row: self._router.peek([row], [None])[0],
        )
        self._may_compile = options.compile is not False
        devices = {stage.lane.device for stage in self.stages}
        self._devices = [device for device in devices if device.type == "cuda"]
        self._sample, self._target = subject.sample, subject.target
        self._group = options.accumulate
        self.count = 1
        self._admission.output_of(self._sample)

    def __repr__(self) -> str:
        return f"<Rehearsal: {len(self.stages)} stages, {self._router.assembly.executor.name}>"

    @property
    def module(self) -> nn.Module:
        """The network."""
        return self._router.assembly.module

    @property
    def stages(self) -> list[Stage]:
        """The stages."""
        return self._router.assembly.stages

    @property
    def learning(self) -> str:
        """How samples are learned, and why; empty where it is eager, but a pipeline may compile."""
        found = self._router.learning
        if found != EAGER_SO_FAR:
            return found
        return "" if find_compiler() is not None else "eager: no C++ compiler"

    def settle(self, seconds: Callable[[], float], *, at_least: int = 1) -> None:
        """Choose how many samples make a measurement, once everything is allocated.

        Args:
            seconds: Measures one sample; :meth:`process` or :meth:`total`.
            at_least: The fewest samples.
        """
        for _ in range(_WARM_UP if self._may_compile else 1):
            seconds()
        found = min(seconds(), seconds())
        is_compiled = self.learning.startswith("compiled")
        most = MOST if is_compiled else _MOST_SAMPLES
        count = max(min(round(_ROUND_SECONDS / found), most), at_least)
        if is_compiled:  # calls cost more than samples
            count = max(count, min(8 * count, most))
        self.count = -(-count // self._group) * self._group

    def process(self) -> float:
        """Process as many samples as ``count`` in one call; return the seconds of each."""
        inputs, targets = self._rows(self.count)
        # The gradients of the last samples wait for the next call: begin and end with as many.
        self._process(*self._rows(len(self.stages)))
        start = time.perf_counter()
        self._process(inputs, targets)
        self._wait()
        seconds = time.perf_counter() - start
        self._router.drain()
        return seconds / self.count

    def latency(self, count: int) -> float:
        """Process samples in one call, eagerly; return the seconds from entry to prediction.

        Of the second half of them: the first enter a pipeline that is empty.
        """
        with self._watching() as events:
            self._process(*self._rows(count))
        self._router.drain()
        last = len(self.stages) - 1
        forwards = [event for event in events if event.action == "forward"]
        entered = {event.sample: event.start for event in forwards if event.stage == 0}
        predicted = {event.sample: event.stop for event in forwards if event.stage == last}
        times = [predicted[number] - entered[number] for number in sorted(entered)]
        return median(times[count // 2 :])

    def admit(self, count: int) -> float:
        """Take in samples without running them; return the seconds of each."""
        inputs, targets = self._rows(count)
        start = time.perf_counter()
        batch = self._admission.admit(inputs, targets, None, None, None)
        batch.samples(0, batch.count)
        return (time.perf_counter() - start) / count

    def record(self) -> list[Cost]:
        """Run as many samples as ``count`` one by one; return what each stage takes of each."""
        inputs, targets = self._rows(1)
        with self._timing_updates() as updates, self._watching() as events:
            for _ in range(self.count):
                self._process(inputs, targets)
                # Else a stage that stashes weights would keep a copy for each of its samples.
                self._router.drain()
        costs = []
        for index, update in enumerate(updates):
            own = [event for event in events if event.stage == index]
            forward, backward = (
                sum(event.stop - event.start for event in own if event.action == action)
                for action in ("forward", "backward")
            )
            costs.append(Cost(forward, backward - update, update).scaled(1 / self.count))
        return costs

    def total(self) -> float:
        """Record, and return what all stages together take of each sample."""
        return sum(cost.total for cost in self.record())

    def close(self) -> None:
        """Stop what runs the stages."""
        self._router.close()

    @contextmanager
    def _watching(self) -> Iterator[list[Event]]:
        """Give a list that fills with what the stages do, eagerly; on CUDA it waits for them."""
        events: list[Event] = []

        def note(event: Event) -> None:
            self._wait()
            stop = time.perf_counter() if self._devices else event.stop
            events.append(replace(event, stop=stop))

        self._router.watch(note)
        yield events
        self._router.watch(None)

    @contextmanager
    def _timing_updates(self) -> Iterator[list[float]]:
        """Give the seconds of each stage's updates, which go on adding up."""
        seconds = [0.0] * len(self.stages)

        def add(index: int, sign: int, *_: object) -> None:
            self._wait()
            seconds[index] += sign * time.perf_counter()

        with ExitStack() as hooks:
            for index, stage in enumerate(self.stages):
                optimizer = stage.updates.optimizer
                if isinstance(optimizer, torch.optim.Optimizer):
                    begin = optimizer.register_step_pre_hook(partial(add, index, -1))
                    end = optimizer.register_step_post_hook(partial(add, index, 1))
                    hooks.callback(begin.remove)
                    hooks.callback(end.remove)
            yield seconds

    def _wait(self) -> None:
        """Wait until the devices have done what they were given."""
        for device in self._devices:
            torch.cuda.synchronize(device)

    def _process(self, inputs: Any, targets: Any) -> None:
        self._router.process(self._admission.admit(inputs, targets, None, None, None))

    def _rows(self, count: int) -> tuple[Any, Any]:
        target = self._target
        targets = None if target is None else trees.stack_samples([target] * count)
        return trees.stack_samples([self._sample] * count), targets


def on_one_device(options: Options, device: str) -> dict[str, Any]:
    """Return changes of options with which any number of stages runs, on one device."""
    return {"devices": device, "optimizer": options.optimizer_of(0)}


def recorded(options: Options, num_stages: int) -> dict[str, Any]:
    """Return changes of options with which each stage does all that it does under load, itself."""
    is_greedy = options.schedule == "greedy" and num_stages > 1
    return {"clip_over": "stage"} | ({"schedule": "1f1b"} if is_greedy else {})


def in_turn(
    modules: Sequence[nn.Module], tasks: Sequence[Callable[[], T]], *, seconds: float
) -> list[list[T]]:
    """Call tasks in turn for so many seconds, and at least a few times; return what each returned.

    Before each call the parameters and buffers of ``modules`` are set back, since a network that
    learns one sample for long has gradients too small to be computed at normal speed.
    """
    weights = _Weights(modules)
    found: list[list[T]] = [[] for _ in tasks]
    start = time.perf_counter()
    while _goes_on(len(found[0]), time.perf_counter() - start, seconds):
        for results, task in zip(found, tasks, strict=True):
            weights.set_back()
            results.append(task())
    weights.set_back()
    return found


def _goes_on(num_rounds: int, elapsed: float, seconds: float) -> bool:
    if num_rounds < _ROUNDS:
        return num_rounds < _FEWEST_ROUNDS or elapsed < max(seconds, _LONG_SECONDS)
    return elapsed < seconds


class _Weights:
    """Parameters and buffers of modules as they are now."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._tensors = [t for m in dict.fromkeys(modules) for t in (*m.parameters(), *m.buffers())]
        self._values = [tensor.detach().clone() for tensor in self._tensors]

    @torch.no_grad()
    def set_back(self) -> None:
        """Write what was written over; a constant may share its elements and take no writing."""
        for tensor, value in zip(self._tensors, self._values, strict=True):
            if not torch.equal(tensor, value):  # compiled code leaves no other trace
                tensor.copy_(value)


def low(times: Sequence[float]) -> float:
    """Return the time that counts of several."""
    return sorted(times)[int(len(times) * _QUANTILE)]


def low_costs(rounds: Sequence[Sequence[Cost]]) -> list[Cost]:
    """Return for each stage the times that count of several rounds."""
    return [
        Cost(*(low([getattr(cost, action) for cost in stage]) for action in Cost.__slots__))
        for stage in zip(*rounds, strict=True)
    ]

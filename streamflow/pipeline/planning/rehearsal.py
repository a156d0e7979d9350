"""Pipelines on a copy of a network, fed one sample again and again to see what they cost.

Nothing of it reaches the caller's network, its gradients, its optimizer or the random generators.
On a busy machine a single measurement means little: whatever is compared is measured in turn, many
times, and of all times a low one counts.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Self, TypeVar

import torch
from torch import nn

from streamflow.errors import OptionError
from streamflow.pipeline import trees
from streamflow.pipeline.admission import Admission
from streamflow.pipeline.codegen.libraries import find_compiler
from streamflow.pipeline.options import Options
from streamflow.pipeline.planning.costs import Cost
from streamflow.pipeline.routing.eager import Flow
from streamflow.pipeline.routing.router import AT_ONCE, EAGER_SO_FAR, ONLY_FOUND, Switch, why_eager
from streamflow.pipeline.routing.variants import MOST
from streamflow.pipeline.running.assembly import assemble
from streamflow.pipeline.running.timeline import Event
from streamflow.pipeline.stages.messages import Sample
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


class Subject:
    """A network with one sample, to be copied and measured.

    Args:
        module: The network; it stays as it is.
        sample: One input with a leading dimension of 1, as the pipeline takes it.
        target: Its target, None where the loss takes none.
        options: How the pipeline would be built.
        initial: Recurrent state that a stream begins with.
    """

    def __init__(
        self, module: nn.Module, sample: Any, target: Any, *, options: Options, initial: Set
    ) -> None:
        self.module = module
        self.sample, self.target = sample, target
        self.options = options
        self.initial = initial

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
        return type(self)(
            module, self.sample, self.target, options=self.options, initial=self.initial
        )


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
        self._assembly = assemble(subject.module, cuts, executor, options, subject.initial)
        self._why_eager = why_eager(self._assembly, options)
        switch = None
        if may_compile and not self._why_eager:
            patience = AT_ONCE if options.compile is True else ONLY_FOUND
            switch = Switch(self._assembly, options, patience, warns=False)
        self._flow = Flow(self._assembly, clip_norm=options.clip_norm, switch=switch)
        self._admission = Admission(
            options.loss,
            input_device=self.stages[0].lane.device,
            output_device=self.stages[-1].lane.device,
            has_state=bool(subject.initial),
            predict=lambda row: self._flow.peek([row], [None])[0],
        )
        self._clock = _Clock(self.stages)
        self._sample, self._target = subject.sample, subject.target
        self._group = options.accumulate
        self.count = 1
        self._admission.output_of(self._sample)

    def __repr__(self) -> str:
        return f"<Rehearsal: {len(self.stages)} stages, {self._assembly.executor.name}>"

    @property
    def stages(self) -> list[Stage]:
        """The stages."""
        return self._assembly.stages

    @property
    def learning(self) -> str:
        """How samples are learned, and why; ``EAGER_SO_FAR`` where a pipeline would compile it."""
        switch = self._flow.switch
        if switch is None:
            return f"eager: {self._why_eager}"
        if switch.status == EAGER_SO_FAR and find_compiler() is None:
            return "eager: no C++ compiler"
        return switch.status

    def settle(self, seconds: Callable[[], float], *, at_least: int = 1) -> None:
        """Choose how many samples make a measurement, once everything is allocated.

        Args:
            seconds: Measures one sample; :meth:`process` or :meth:`total`.
            at_least: The fewest samples.
        """
        for _ in range(_WARM_UP if self._flow.switch else 1):
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
        self._clock.wait()
        seconds = time.perf_counter() - start
        self._flow.drain()
        return seconds / self.count

    def admit(self) -> float:
        """Take in as many samples as ``count`` without running them; return the seconds of each."""
        inputs, targets = self._rows(self.count)
        start = time.perf_counter()
        self._admit(inputs, targets)
        return (time.perf_counter() - start) / self.count

    def record(self) -> list[Cost]:
        """Run as many samples as ``count`` one by one; return what each stage takes of each."""
        samples, rows = self._admit(*self._rows(self.count))
        with self._clock.running():
            self._flow.watch(self._clock.note)
            for sample, row in zip(samples, rows, strict=True):
                self._flow.send([sample], [row])
                # Else a stage that stashes weights would keep a copy for each of its samples.
                self._flow.drain()
            self._flow.watch(None)
        return [cost.scaled(1 / self.count) for cost in self._clock.costs()]

    def total(self) -> float:
        """Record, and return what all stages together take of each sample."""
        return sum(cost.total for cost in self.record())

    def close(self) -> None:
        """Stop what runs the stages."""
        self._flow.close()

    def _process(self, inputs: Any, targets: Any) -> None:
        self._flow.process(self._admission.admit(inputs, targets, None, None, None), number=0)

    def _rows(self, count: int) -> tuple[Any, Any]:
        target = self._target
        targets = None if target is None else trees.stack_samples([target] * count)
        return trees.stack_samples([self._sample] * count), targets

    def _admit(self, inputs: Any, targets: Any) -> tuple[list[Sample], list[Any]]:
        batch = self._admission.admit(inputs, targets, None, None, None)
        return batch.samples(0, len(batch), number=0), batch.rows


class _Clock:
    """Adds up what the stages of an inline executor do; on CUDA it waits for them."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = stages
        self._devices = {s.lane.device for s in stages if s.lane.device.type == "cuda"}
        self._forwards, self._backwards, self._updates = ([0.0] * len(stages) for _ in range(3))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Add up from zero, updates too."""
        for seconds in (self._forwards, self._backwards, self._updates):
            seconds[:] = [0.0] * len(seconds)
        with ExitStack() as hooks:
            for index, stage in enumerate(self._stages):
                optimizer = stage.updates.optimizer
                if isinstance(optimizer, torch.optim.Optimizer):
                    begin, end = (
                        partial(self._begin_update, index),
                        partial(self._end_update, index),
                    )
                    hooks.callback(optimizer.register_step_pre_hook(begin).remove)
                    hooks.callback(optimizer.register_step_post_hook(end).remove)
            yield

    def note(self, event: Event) -> None:
        """Take note of an action that just ended."""
        self.wait()
        stop = time.perf_counter() if self._devices else event.stop
        seconds = self._forwards if event.action == "forward" else self._backwards
        seconds[event.stage] += stop - event.start

    def costs(self) -> list[Cost]:
        """Return the sums of all stages."""
        rows = zip(self._forwards, self._backwards, self._updates, strict=True)
        return [Cost(forward, backward - update, update) for forward, backward, update in rows]

    def wait(self) -> None:
        """Wait until the devices have done what they were given."""
        for device in self._devices:
            torch.cuda.synchronize(device)

    def _begin_update(self, index: int, *_: object) -> None:
        self.wait()
        self._updates[index] -= time.perf_counter()

    def _end_update(self, index: int, *_: object) -> None:
        self.wait()
        self._updates[index] += time.perf_counter()


def in_turn(
    modules: Sequence[nn.Module], tasks: Sequence[Callable[[], T]], *, seconds: float
) -> list[list[T]]:
    """Call tasks in turn for so long, and at least a few times; return what each one returned.

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

"""What learns samples in a way: the plain loop of PyTorch, or a pipeline."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from streamflow.bench.samples import Array, Waiting
from streamflow.bench.ways import Way
from streamflow.models.model import Model
from streamflow.models.network import build_network, load_weights
from streamflow.models.options import pipeline_options
from streamflow.pipeline import Pipeline
from streamflow.pipeline.checks import takes_target
from streamflow.pipeline.options import Options
from streamflow.pipeline.stages.updates import parameter_groups


@dataclass(frozen=True, slots=True)
class WayJob:
    """A way to learn a model, with all that it needs in a process of its own.

    Attributes:
        model: The declaration.
        folder: Where its callables and weights lie.
        way: How to learn.
        num_threads: Intra-op threads.
        cuts: Modules to cut before.
        waiting: Samples to learn, again and again.
    """

    model: Model
    folder: Path
    way: Way
    num_threads: int
    cuts: tuple[str, ...]
    waiting: Waiting


class Contestant(ABC):
    """Predicts and learns the samples of a job, again and again."""

    def __init__(self, waiting: Waiting) -> None:
        self._num_waiting = len(waiting)
        self._next = 0

    def take(self, count: int) -> None:
        """Learn the next samples, as if they were all that waits."""
        first = self._next if self._next + count <= self._num_waiting else 0
        self._next = first + count
        self._learn(first, first + count)

    @property
    @abstractmethod
    def learning(self) -> str:
        """How samples are learned."""

    @abstractmethod
    def finish(self) -> None:
        """Apply every gradient in flight."""

    @abstractmethod
    def _learn(self, first: int, stop: int) -> None:
        """Learn the samples from one to another."""


@contextmanager
def open_contestant(job: WayJob) -> Iterator[Contestant]:
    """Build the network of a job and what learns it.

    Raises:
        StreamflowError: It cannot be built.
    """
    network = build_network(job.model, job.folder)
    if job.model.weights is not None:
        load_weights(network, job.folder / job.model.weights)
    options = pipeline_options(job.model, job.folder) | {"stages": job.cuts or 1, "rate": None}
    if job.way.is_loop:
        yield _Loop(network, Options(**options), job.waiting)
        return
    options |= {"executor": job.way.executor, "compile": job.way.is_compiled}
    with Pipeline(network, **options) as pipeline:
        yield _Piped(pipeline, job.waiting)


class _Piped(Contestant):
    """A pipeline."""

    def __init__(self, pipeline: Pipeline, waiting: Waiting) -> None:
        super().__init__(waiting)
        self._pipeline = pipeline
        self._inputs, self._targets = _tensor(waiting.inputs), _tensor(waiting.targets)

    @property
    def learning(self) -> str:
        return self._pipeline.learning

    def finish(self) -> None:
        self._pipeline.drain()

    def _learn(self, first: int, stop: int) -> None:
        targets = None if self._targets is None else self._targets[first:stop]
        self._pipeline.process(self._inputs[first:stop], targets)


class _Loop(Contestant):
    """What a script without streamflow does: sample by sample, and nothing else."""

    def __init__(self, network: nn.Module, options: Options, waiting: Waiting) -> None:
        super().__init__(waiting)
        options.check_num_stages(1)
        device = _device(options)
        if device is not None:
            network.to(device)
        inputs, targets = _tensor(waiting.inputs), _tensor(waiting.targets)
        self._inputs = inputs.to(device).split(1)
        self._targets = None if targets is None else targets.to(device).split(1)
        self._step = _inference(network) if options.loss is None else _learning(network, options)

    @property
    def learning(self) -> str:
        return "eager"

    def finish(self) -> None:
        """Do nothing: no gradient is ever in flight."""

    def _learn(self, first: int, stop: int) -> None:
        inputs = self._inputs[first:stop]
        targets = [None] * len(inputs) if self._targets is None else self._targets[first:stop]
        for x, y in zip(inputs, targets, strict=True):
            self._step(x, y)


Step = Callable[[Tensor, Tensor | None], None]


def _inference(network: nn.Module) -> Step:
    @torch.no_grad()
    def step(x: Tensor, _: Tensor | None) -> None:
        network(x)

    return step


def _learning(network: nn.Module, options: Options) -> Step:
    """Return the body of the loop."""
    loss, make = options.loss, options.optimizer_of(0)
    assert loss is not None
    assert make is not None
    optimizer = make(parameter_groups(dict(network.named_parameters()), options))
    schedule = options.scheduler(optimizer) if options.scheduler is not None else None
    has_target = takes_target(loss)
    every, number = options.accumulate, 0

    def step(x: Tensor, y: Tensor | None) -> None:
        nonlocal number
        if number % every == 0:
            optimizer.zero_grad()
        output = network(x)
        value = loss(output, y) if has_target else loss(output)
        (value if every == 1 else value / every).backward()  # type: ignore[no-untyped-call]
        number += 1
        if number % every == 0:
            if options.clip_norm is not None:
                nn.utils.clip_grad_norm_(network.parameters(), options.clip_norm)
            optimizer.step()
            if schedule is not None:
                schedule.step()
        for name in options.state:
            _detach(network, name)

    return step


def _detach(network: nn.Module, name: str) -> None:
    """End the gradients' way back through recurrent state, as a pipeline does."""
    owner, _, buffer = name.rpartition(".")
    setattr(network.get_submodule(owner), buffer, network.get_buffer(name).detach())


def _device(options: Options) -> Any:
    """Return the device of the whole network, None for wherever it is made."""
    devices = options.devices
    return devices[0] if isinstance(devices, tuple) else devices


def _tensor(array: Array | None) -> Any:
    return None if array is None else torch.from_numpy(array)

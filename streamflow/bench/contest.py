"""All ways to learn a model, measured in turn.

What else the machine does meets all ways alike: each has its process, ready and waiting, and every
round asks one after the other. The loops come first. They tell how many samples a call can have,
so that it takes a small part of a round, and whether it is one thread or all that are faster.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import nn

from streamflow.bench.contestants import WayJob
from streamflow.bench.processes import WayProcess, fork_server
from streamflow.bench.results import Result, Row
from streamflow.bench.samples import Waiting, draw
from streamflow.bench.ways import all_ways, chosen
from streamflow.bench.worker import WayError, told
from streamflow.errors import OptionError, PartitionError
from streamflow.models.model import Model
from streamflow.models.network import build_network
from streamflow.models.options import pipeline_options
from streamflow.pipeline import Pipeline
from streamflow.pipeline.network.layers import layer_names

Progress = Callable[[str, int, int], None]
"""Is told what comes next, how many steps are done, and how many there are."""

# If no loop can be measured.
_SAMPLES_PER_CALL = 32
# One thread must be clearly faster than all of them for pipelines to have one, too.
_CLEARLY = 1.1


@dataclass(frozen=True, slots=True)
class Settings:
    """What is to be measured, and how long.

    Attributes:
        rounds: How often every way is measured.
        seconds: How long each time.
        ways: Patterns of the names of ways; none for the usual ones.
        shape: Shape of one input, where neither declaration nor network tells it.
    """

    rounds: int = 5
    seconds: float = 1.0
    ways: tuple[str, ...] = ()
    shape: Sequence[int] | None = None


def bench_model(model: Model, folder: Path, settings: Settings, progress: Progress) -> Result:
    """Measure the ways to learn a model.

    Args:
        model: The declaration.
        folder: Where its callables lie.
        settings: What to measure.
        progress: Is told what happens.

    Raises:
        SelectionError: There is no such way.
        ShapeError: The shape of a sample is not known, or does not fit.
        OptionError: The declaration cannot go to another process.
        StreamflowError: The network cannot be built.
    """
    _check_portable(model)
    network = build_network(model, folder)
    waiting = draw(model, network, folder, settings.shape)
    num_cores = count_cores()
    num_layers = _count_layers(network, model)
    ways = chosen(all_ways(num_cores, num_layers or 2), settings.ways)
    rows = [Row(way) for way in ways]
    cuts = _cutter(network, model, folder, waiting)
    with tempfile.TemporaryDirectory(prefix="streamflow-bench-") as logs, ExitStack() as stack:
        context = fork_server()

        def start(row: Row) -> WayProcess:
            job = WayJob(model, folder, row.way, row.num_threads, row.cuts, waiting)
            return stack.enter_context(WayProcess(context, job, Path(logs)))

        contest = _Contest(start, rows, settings, progress)
        contest.prepare_loops(num_cores)
        contest.prepare_pipelines(cuts)
        contest.run()
    return Result(
        shape=waiting.inputs.shape[1:],
        num_parameters=sum(parameter.numel() for parameter in network.parameters()),
        num_layers=num_layers or 1,
        samples_per_call=contest.count,
        rows=rows,
    )


def count_cores() -> int:
    """Return how many threads of this process can run at the same time."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_portable(model: Model) -> None:
    """Raise unless other processes can have the declaration."""
    try:
        pickle.dumps(model)
    except Exception as error:  # pickling calls what the caller's objects define
        message = (
            f"expected callables that other processes can import, got {error}; "
            "name them package.module:callable"
        )
        raise OptionError(message) from error


def _count_layers(network: nn.Module, model: Model) -> int | None:
    """Return how many layers stages may begin with; None if the network cannot be traced."""
    try:
        return len(layer_names(network, state=model.state))
    except PartitionError:
        return None


def _cutter(
    network: nn.Module, model: Model, folder: Path, waiting: Waiting
) -> Callable[[int], tuple[str, ...]]:
    """Return what names the modules to cut before, for so many stages.

    That is where the declaration names the cuts, and else where the slowest stage is fastest,
    measured once for all ways with so many stages. It raises `WayError` if the network cannot be
    cut so.
    """
    options = pipeline_options(model, folder) | {"rate": None, "executor": "inline"}
    sample = torch.from_numpy(waiting.inputs[:1])
    target = None if waiting.targets is None else torch.from_numpy(waiting.targets[:1])
    named = model.stages if isinstance(model.stages, tuple) else ()

    @cache
    def cuts(num_stages: int) -> tuple[str, ...]:
        if num_stages == 1:
            return ()
        if num_stages == len(named) + 1:
            return named
        try:
            with Pipeline(network, **options | {"stages": num_stages}) as pipeline:
                return tuple(pipeline.plan(sample, target).cuts)
        except Exception as error:  # a network may fail in any way
            raise WayError(told(error)) from error

    return cuts


class _Contest:
    """Measures the ways of some rows, round by round.

    Attributes:
        count: Samples of a call.
    """

    def __init__(
        self,
        start: Callable[[Row], WayProcess],
        rows: Sequence[Row],
        settings: Settings,
        progress: Progress,
    ) -> None:
        self._start_process, self._rows = start, rows
        self._rounds, self._seconds = settings.rounds, settings.seconds
        self._workers: dict[str, WayProcess] = {}
        self._progress, self._done = progress, 0
        self._num_threads = 1
        self.count = _SAMPLES_PER_CALL

    def prepare_loops(self, num_cores: int) -> None:
        """Get the loops ready, and take from them what the pipelines are given."""
        count, rates = None, {1: 0.0, num_cores: 0.0}
        for row in self._rows:
            if not row.way.is_loop:
                continue
            row.num_threads = row.way.threads(num_cores)
            with self._step(row, "preparing"):
                worker = self._start(row)
                self.count = count = worker.settle(count, seconds=self._seconds)
                rates[row.num_threads] = worker.measure(count, seconds=self._seconds).rate
        self._num_threads = 1 if rates[1] > rates[num_cores] * _CLEARLY else num_cores

    def prepare_pipelines(self, cuts: Callable[[int], tuple[str, ...]]) -> None:
        """Get the pipelines ready."""
        for row in self._rows:
            if row.way.is_loop:
                continue
            row.num_threads = row.way.threads(self._num_threads)
            with self._step(row, "preparing"):
                row.cuts = cuts(row.way.num_stages)
                self._start(row).settle(self.count, seconds=self._seconds)

    def run(self) -> None:
        """Measure all rounds."""
        for number in range(1, self._rounds + 1):
            for row in self._rows:
                with self._step(row, f"round {number} of {self._rounds},"):
                    if not row.failure:
                        worker = self._workers[row.way.name]
                        row.rounds.append(worker.measure(self.count, seconds=self._seconds))

    def _start(self, row: Row) -> WayProcess:
        worker = self._workers[row.way.name] = self._start_process(row)
        return worker

    @contextmanager
    def _step(self, row: Row, what: str) -> Iterator[None]:
        """Tell of a step, and take note of why it cannot be made."""
        total = len(self._rows) * (1 + self._rounds)
        self._progress(f"{what} {row.way.name}", self._done, total)
        self._done += 1
        try:
            yield
        except WayError as error:
            row.failure = str(error)

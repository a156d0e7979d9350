"""Samples on their way through the stages, and what interrupts them."""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from streamflow.errors import OptionError, PartitionError, SampleError, StageError
from streamflow.pipeline import trees
from streamflow.pipeline.admission import Batch
from streamflow.pipeline.native.native import RaisedError
from streamflow.pipeline.routing.router import Chunk, Switch
from streamflow.pipeline.routing.together import Batching, count_quiet, runs
from streamflow.pipeline.routing.trial import FEWEST
from streamflow.pipeline.running.assembly import Assembly, reassemble
from streamflow.pipeline.running.timeline import Event
from streamflow.pipeline.running.worker import failure
from streamflow.pipeline.stages.lanes import await_here, now
from streamflow.pipeline.stages.messages import (
    Activation,
    Arrival,
    Drain,
    Output,
    Peek,
    Result,
    Sample,
    Settle,
)
from streamflow.pipeline.stages.recurrence import Key
from streamflow.pipeline.stages.updates import clip


class Flow:
    """Sends samples through an assembly; whatever interrupts that breaks it for good.

    Attributes:
        switch: What leads samples to compiled code; None where nothing is compiled.
        failure: What broke it.

    Args:
        assembly: The stages and what runs them.
        clip_norm: Largest norm of a gradient over all stages.
        switch: As above.
        may_batch: Whether samples that are not learned may share a forward, equal to rounding.
    """

    def __init__(
        self,
        assembly: Assembly,
        *,
        clip_norm: float | None,
        switch: Switch | None = None,
        may_batch: bool = False,
    ) -> None:
        self.assembly = assembly
        self.switch = switch
        self.failure: StageError | None = None
        self._batching = (
            Batching(assembly.module, assembly.stages, self._peek_batches) if may_batch else None
        )
        self._clip_norm = clip_norm
        self._has_gradients = False
        self._quiet = sys.maxsize
        self._is_watched = False
        self._entered = 0

    def process(self, batch: Batch, *, number: int) -> Chunk:
        """Predict the samples of a batch in order and learn from them, compiled where that is.

        Args:
            batch: One sample or more.
            number: Samples that entered before.

        Raises:
            StageError: A stage raised, or the outputs differ in shape.
        """
        self._entered = number + len(batch)
        found = self._process(batch, number)
        if batch.is_learned[-1]:
            self._quiet = 0
        else:
            self._quiet = count_quiet(batch.is_learned, len(batch), self._quiet)
        return found

    def _process(self, batch: Batch, number: int) -> Chunk:
        switch = self.switch
        if switch is None or self._is_watched:
            return self.eagerly(batch, 0, len(batch), number)
        self._follow_modes()
        self._has_gradients = True
        try:
            return switch.process(batch, _Eager(self, batch, number), number)
        except Exception as error:
            if self.failure is not None:
                raise
            raise self._break(self._broken(error, number)) from error
        except BaseException as error:
            if self.failure is None:
                self._break(_interrupted(error))
            raise

    def _broken(self, error: Exception, number: int) -> StageError:
        """Return what the caller gets where compiled code raised."""
        stage, index = (error.stage, error.number) if isinstance(error, RaisedError) else (0, 0)
        return failure(self.assembly.stages[stage], "compiled code", number + index, error)

    @property
    def shares(self) -> bool:
        """Whether samples that are not learned may share a forward, as far as is known."""
        return self._batching is not None and self._batching.shares

    def settle(self) -> None:
        """Wait until nothing is left to do without another sample."""
        if self._has_gradients and self.assembly.executor.name == "threads":
            self._exchange([Settle()], len(self.assembly.stages))

    def eagerly(self, batch: Batch, first: int, stop: int, number: int) -> Chunk:
        """Run samples from one to another through the stages, together where that is the same."""
        self._hand_over(number + first)
        if self._batching is None or self._is_watched or stop - first < FEWEST:
            return self._one_by_one(batch, first, stop, number)
        quiet = count_quiet(batch.is_learned, first, self._quiet)
        parts = runs(batch.is_learned, first, stop, quiet=quiet, lag=self._lag)
        chunks = [
            (may_share and self._together(self._batching, batch, begin, end))
            or self._one_by_one(batch, begin, end, number)
            for begin, end, may_share in parts
        ]
        if len(chunks) == 1:
            return chunks[0]
        values = [outputs for outputs, _ in chunks]
        firsts = [trees.map_tensors(lambda t: t[:1], outputs) for outputs in values]
        self._check_alike([number + begin for begin, _, _ in parts], firsts)
        return trees.stack_samples(values), [step for _, steps in chunks for step in steps]

    def _together(self, batching: Batching, batch: Batch, first: int, stop: int) -> Chunk | None:
        """Predict samples that are not learned, where no gradient is in flight."""
        inputs = trees.map_tensors(lambda tensor: tensor[first:stop], batch.inputs)
        outputs = batching.predict(inputs, stop - first, may_try=True)
        if outputs is None:
            return None
        return outputs, [self.assembly.stages[0].updates.made] * (stop - first)

    def _one_by_one(self, batch: Batch, first: int, stop: int, number: int) -> Chunk:
        samples = batch.samples(first, stop, number=number)
        outputs = self.send(samples, batch.rows[first:stop])
        values = trees.stack_samples([output.value for output in outputs])
        return values, [output.steps for output in outputs]

    @property
    def _lag(self) -> int:
        """Samples after a learned one that see other weights than those that follow, at most."""
        return 2 * (len(self.assembly.stages) - 1)

    def send(self, samples: Sequence[Sample], rows: Sequence[Any]) -> list[Output]:
        """Predict samples in order and learn from them; gradients may stay in flight.

        Raises:
            StageError: A stage raised, or the outputs differ in shape.
        """
        self._follow_modes()
        self._has_gradients = self._has_gradients or bool(samples)
        ready = now(self.assembly.stages[0].lane.device)
        arrivals = [Activation(s, (row,), ready) for s, row in zip(samples, rows, strict=True)]
        if self.assembly.clips_network:
            results = [result for arrival in arrivals for result in self._send_alone(arrival)]
        else:
            results = self._exchange(arrivals, len(arrivals))
        outputs = [result for result in results if isinstance(result, Output)]
        numbers = [sample.number for sample in samples]
        self._check_alike(numbers, [output.value for output in outputs])
        return self._handed_over(outputs)

    def infer(self, inputs: Any, keys: Sequence[Key]) -> Any:
        """Predict each of some samples (n, ...) as if it were the next one.

        Raises:
            OptionError: The network cannot learn sample by sample.
            SampleError: A sample does not fit the network.
        """
        count = len(keys)
        if self._batching is not None and count >= FEWEST:
            is_idle = self.assembly.executor.name == "inline" or self._quiet >= self._lag
            outputs = self._batching.predict(inputs, count, may_try=is_idle)
            if outputs is not None:
                return outputs
        return trees.stack_samples(self.peek(trees.split_samples(inputs, count), keys))

    def _peek_batches(self, batches: Sequence[Any]) -> list[Any]:
        return self.peek(batches, [None] * len(batches))

    def peek(self, rows: Sequence[Any], keys: Sequence[Key]) -> list[Any]:
        """Predict each sample as if it were the next one.

        Raises:
            OptionError: The network cannot learn sample by sample.
            SampleError: A sample does not fit the network.
        """
        self._follow_modes()
        ready = now(self.assembly.stages[0].lane.device)
        peeks = [Peek((row,), key, ready) for row, key in zip(rows, keys, strict=True)]
        results = self._exchange(peeks, len(peeks))
        outputs = [result for result in results if isinstance(result, Output)]
        for index, output in enumerate(outputs):
            if output.error is not None:
                _refuse(output.error, index)
        return [output.value for output in self._handed_over(outputs)]

    def drain(self) -> None:
        """Apply every gradient in flight."""
        if self.switch is not None and self.switch.is_flying:
            self._drain_compiled(self.switch)
        if self._has_gradients:
            with self.assembly.in_its_modes():
                self._exchange([Drain()], len(self.assembly.stages))
            self._has_gradients = False
        self._quiet = sys.maxsize

    def _drain_compiled(self, switch: Switch) -> None:
        try:
            switch.drain(self._entered)
        except Exception as error:
            raise self._break(self._broken(error, self._entered)) from error

    def _hand_over(self, number: int) -> None:
        if self.switch is not None:
            self.switch.hand_over(number)

    def watch(self, record: Callable[[Event], None] | None) -> None:
        """Tell ``record`` of every action from now on."""
        self._is_watched = record is not None
        for worker in self.assembly.executor.workers:
            worker.record = record

    def close(self) -> None:
        """Stop what runs the stages, and what compiles."""
        if self.switch is not None:
            self.switch.close()
        self.assembly.executor.close()

    def _follow_modes(self) -> None:
        """Cut the network again where training and evaluation mode changed: a trace follows one."""
        if self.assembly.has_new_modes():
            self.drain()
            self.assembly = reassemble(self.assembly)
            if self.switch is not None:
                self.switch.follow(self.assembly)

    def _send_alone(self, arrival: Activation) -> list[Result]:
        """Send one sample and update all stages when all their gradients are known."""
        results = self._exchange([arrival], 1)
        self._exchange([Drain()], len(self.assembly.stages))
        updates = [stage.updates for stage in self.assembly.stages]
        if arrival.sample.is_learned and all(own.is_offered for own in updates):
            try:
                self._update_together()
            except Exception as error:
                number = arrival.sample.number
                broken = failure(self.assembly.stages[0], "update", number, error)
                raise self._break(broken) from error
        for own in updates:
            own.withdraw()
        return results

    def _update_together(self) -> None:
        updates = [stage.updates for stage in self.assembly.stages]
        is_complete = [own.accept() for own in updates]
        if not all(is_complete):
            return
        assert self._clip_norm is not None
        clip(updates, self._clip_norm)
        for stage in self.assembly.stages:
            stage.apply()

    def _check_alike(self, numbers: Sequence[int], values: Sequence[Any]) -> None:
        if len(values) < 2:
            return
        kinds = [trees.shapes(value) for value in values]
        for number, kind in zip(numbers, kinds, strict=True):
            if kind != kinds[0]:
                last = self.assembly.stages[-1]
                raise self._break(
                    StageError(
                        f"stage {last.index} ({last.name}), sample {number}: expected an "
                        f"output like that of sample {numbers[0]}, {kinds[0]}, got {kind}; "
                        "make the network return one shape, or process such samples in calls of "
                        "their own, with a new pipeline, as this one is broken"
                    )
                )

    def _handed_over(self, outputs: list[Output]) -> list[Output]:
        for output in outputs:
            await_here(output.value, output.ready)
        return outputs

    def _exchange(self, arrivals: Iterable[Arrival], count: int) -> list[Result]:
        """Send arrivals through the stages and wait for as many results as they have."""
        executor = self.assembly.executor
        try:
            for arrival in arrivals:
                executor.submit(arrival)
            return executor.collect(count)
        except BaseException as error:
            self._break(error if isinstance(error, StageError) else _interrupted(error))
            raise

    def _break(self, error: StageError) -> StageError:
        self.failure = error
        self.close()
        return error


@dataclass(slots=True)
class _Eager:
    """The eager stages, as samples of a batch meet them."""

    flow: Flow
    batch: Batch
    number: int

    @property
    def shares(self) -> bool:
        return self.flow.shares

    def learn(self, first: int, stop: int) -> Chunk:
        return self.flow.eagerly(self.batch, first, stop, self.number)

    def settle(self) -> None:
        self.flow.settle()


def _refuse(error: Exception, index: int) -> None:
    if isinstance(error, OptionError | PartitionError):
        raise error
    msg = f"inputs: expected samples that the network takes, got {error}; compare shape and dtype"
    raise SampleError(msg, index=index) from error


def _interrupted(error: BaseException) -> StageError:
    broken = StageError(
        f"pipeline: expected to finish the call, got {type(error).__name__}; "
        "build a new pipeline, this one is broken"
    )
    broken.__cause__ = error
    return broken

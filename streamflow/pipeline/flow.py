"""Samples on their way through the stages, and what interrupts them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from streamflow.errors import OptionError, PartitionError, SampleError, StageError
from streamflow.pipeline import trees
from streamflow.pipeline.admission import Batch
from streamflow.pipeline.assembly import Assembly, reassemble
from streamflow.pipeline.devices import await_here, now
from streamflow.pipeline.messages import Activation, Arrival, Drain, Output, Peek, Result, Sample
from streamflow.pipeline.states import Key
from streamflow.pipeline.switching import Chunk, Switch
from streamflow.pipeline.timeline import Event
from streamflow.pipeline.updates import clip
from streamflow.pipeline.worker import failure


class Flow:
    """Sends samples through an assembly; whatever interrupts that breaks it for good.

    Attributes:
        switch: What leads samples to compiled code; None where nothing is compiled.
        failure: What broke it.
    """

    def __init__(
        self, assembly: Assembly, *, clip_norm: float | None, switch: Switch | None = None
    ) -> None:
        self.assembly = assembly
        self.switch = switch
        self.failure: StageError | None = None
        self._clip_norm = clip_norm
        self._has_gradients = False
        self._is_watched = False

    def process(self, batch: Batch, *, number: int) -> Chunk:
        """Predict the samples of a batch in order and learn from them, compiled where that is.

        Args:
            batch: One sample or more.
            number: Samples that entered before.

        Raises:
            StageError: A stage raised, or the outputs differ in shape.
        """

        def eager(first: int, stop: int) -> Chunk:
            samples = batch.samples(first, stop, number=number)
            outputs = self.send(samples, batch.rows[first:stop])
            values = trees.stack_samples([output.value for output in outputs])
            return values, [output.steps for output in outputs]

        if self.switch is None or self._is_watched:
            return eager(0, len(batch))
        try:
            return self.switch.process(batch, eager)
        except StageError:
            raise
        except BaseException as error:
            stage = self.assembly.stages[0]
            broken = (
                failure(stage, "compiled code", number, error)
                if isinstance(error, Exception)
                else _interrupted(error)
            )
            raise self._break(broken) from error

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
        self._check_alike(samples, outputs)
        return self._handed_over(outputs)

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
        if self._has_gradients:
            with self.assembly.in_its_modes():
                self._exchange([Drain()], len(self.assembly.stages))
            self._has_gradients = False

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

    def _check_alike(self, samples: Sequence[Sample], outputs: Sequence[Output]) -> None:
        if len(outputs) < 2:
            return
        kinds = [trees.shapes(output.value) for output in outputs]
        for sample, kind in zip(samples, kinds, strict=True):
            if kind != kinds[0]:
                last = self.assembly.stages[-1]
                raise self._break(
                    StageError(
                        f"stage {last.index} ({last.name}), sample {sample.number}: expected an "
                        f"output like that of sample {samples[0].number}, {kinds[0]}, got {kind}; "
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

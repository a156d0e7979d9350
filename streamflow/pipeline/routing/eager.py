"""The eager way: samples go through the stages one by one."""

from collections.abc import Sequence
from typing import Any

from streamflow.errors import OptionError, PartitionError, SampleError
from streamflow.pipeline import trees
from streamflow.pipeline.admission import AdmittedBatch
from streamflow.pipeline.routing.ways import Chunk
from streamflow.pipeline.running.assembly import Assembly
from streamflow.pipeline.running.worker import unlike
from streamflow.pipeline.stages.lanes import await_here, now
from streamflow.pipeline.stages.messages import Activation, Drain, Output, Peek, Result
from streamflow.pipeline.stages.recurrence import Key
from streamflow.pipeline.stages.stage import InFlight


class EagerWay:
    """Sends samples through the stages of an assembly, and whatever is not learned.

    Args:
        assembly: The stages and what runs them.
    """

    def __init__(self, assembly: Assembly) -> None:
        self._assembly = assembly
        self._entry = assembly.stages[0].lane
        self._learns_alone = assembly.clips_network
        self._may_hold = False

    def learn(self, batch: AdmittedBatch, first: int, stop: int) -> Chunk:
        """Predict samples and learn from them; gradients may stay in flight.

        Raises:
            StageError: A stage raised, or outputs differ in shape.
        """
        self._may_hold = True
        assembly = self._assembly
        ready = None if self._entry.is_host else now(self._entry.device)
        arrivals = [Activation(sample, (row,), ready) for sample, row in batch.samples(first, stop)]
        if self._learns_alone:
            results = [result for arrival in arrivals for result in assembly.learn_alone(arrival)]
        else:
            results = assembly.executor.exchange(arrivals, len(arrivals))
        outputs = _outputs(results)
        values = [output.value for output in outputs]
        if len(values) > 1:
            self._check_alike(values, batch.number + first)
        return trees.stack_samples(values), [output.steps for output in outputs]

    def peek(self, rows: Sequence[Any], keys: Sequence[Key]) -> list[Any]:
        """Predict each sample, or batch of them, as if it were the next one.

        Raises:
            OptionError: The network cannot learn sample by sample.
            SampleError: A sample does not fit the network.
        """
        ready = None if self._entry.is_host else now(self._entry.device)
        peeks = [Peek((row,), key, ready) for row, key in zip(rows, keys, strict=True)]
        outputs = _outputs(self._assembly.executor.exchange(peeks, len(peeks)))
        for index, output in enumerate(outputs):
            if output.error is not None:
                _refuse(output.error, index)
        return [output.value for output in outputs]

    def drain(self) -> None:
        """Apply every gradient in flight."""
        if self._may_hold:
            with self._assembly.in_its_modes():
                self._assembly.executor.exchange([Drain()], len(self._assembly.stages))
            self._may_hold = False

    def settle(self) -> None:
        """Wait until nothing is left to do without another sample."""
        if self._may_hold:
            self._assembly.executor.settle()

    def release(self) -> InFlight:
        """Come to rest, and give up what is in flight."""
        self.settle()
        self._may_hold = False
        in_flight = self._assembly.executor.in_flight
        self._assembly.executor.replace(InFlight.nothing(len(self._assembly.stages)))
        return in_flight

    def accept(self, in_flight: InFlight) -> None:
        """Go on with what another way had in flight."""
        self._may_hold = True
        self._assembly.executor.replace(in_flight)
        for stage, held in zip(self._assembly.stages, in_flight.held, strict=True):
            stage.resume(held)

    def _check_alike(self, values: Sequence[Any], number: int) -> None:
        wanted, *others = map(trees.shapes, values)
        for index, shapes in enumerate(others, 1):
            if shapes != wanted:
                raise unlike(self._assembly.stages[-1], (number, wanted), (number + index, shapes))


def _outputs(results: Sequence[Result]) -> list[Output]:
    """Return what came out at the end, for use in the caller's stream."""
    outputs = [result for result in results if isinstance(result, Output)]
    for output in outputs:
        if output.ready is not None:
            await_here(output.value, output.ready)
    return outputs


def _refuse(error: Exception, index: int) -> None:
    if isinstance(error, OptionError | PartitionError):
        raise error
    msg = f"inputs: expected samples that the network takes, got {error}; compare shape and dtype"
    raise SampleError(msg, index=index) from error

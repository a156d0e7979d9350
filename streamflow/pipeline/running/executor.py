"""What executors have in common: they run one worker for each stage.

They differ in where workers live and what links are made of. An executor of other processes fills
in the same methods; what it takes and returns is messages and tensors.
"""

from collections.abc import Sequence
from typing import ClassVar

from streamflow.pipeline.running.timeline import Record
from streamflow.pipeline.running.worker import Worker
from streamflow.pipeline.stages.messages import Arrival, Result, Settle
from streamflow.pipeline.stages.stage import InFlight


class Executor:
    """Runs stages: takes arrivals, gives results in their order.

    Attributes:
        name: What the option ``executor`` calls it.
    """

    name: ClassVar[str]

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers = workers

    def exchange(self, arrivals: Sequence[Arrival], count: int) -> list[Result]:
        """Send arrivals through the stages and wait for as many results as they have.

        Raises:
            StageError: A stage raised.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Stop what runs the stages; closing again does nothing."""

    def settle(self) -> None:
        """Wait until no stage has anything left to do without another sample."""
        self.exchange([Settle()], len(self.workers))

    def watch(self, record: Record | None) -> None:
        """Tell ``record`` of every action from now on."""
        for worker in self.workers:
            worker.record = record

    @property
    def in_flight(self) -> InFlight:
        """What is in flight; the stages must be at rest."""
        held, gradients = zip(*(worker.in_flight for worker in self.workers), strict=True)
        return InFlight(list(held), list(gradients))

    def replace(self, in_flight: InFlight) -> None:
        """Have something else in flight; the stages must be at rest."""
        for worker, held, gradients in zip(
            self.workers, in_flight.held, in_flight.gradients, strict=True
        ):
            worker.replace(held, gradients)

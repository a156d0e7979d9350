"""The shape that all ways to learn have."""

from typing import Any, Protocol

from streamflow.pipeline.admission import AdmittedBatch
from streamflow.pipeline.stages.stage import InFlight

Chunk = tuple[Any, list[int]]
"""Outputs of some samples, joined, and the updates that stage 0 had made before each."""


class Way(Protocol):
    """A way to predict samples and to learn from them.

    What is in flight belongs to one way at a time. Only the router takes it from one and gives it
    to another; a way knows neither the router nor the others.
    """

    def learn(self, batch: AdmittedBatch, first: int, stop: int) -> Chunk:
        """Predict samples of a batch from one to another, in order, and learn from them.

        Raises:
            Unsupported: Such samples need another way; nothing of them has happened.
            StageError: A stage raised, or outputs differ in shape.
        """

    def release(self) -> InFlight:
        """Come to rest, and give up what is in flight."""

    def accept(self, in_flight: InFlight) -> None:
        """Go on with what another way had in flight.

        Raises:
            Unsupported: That needs another way; nothing has happened.
        """

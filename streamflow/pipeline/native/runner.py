"""What compiled code looks like to those who call it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from streamflow.pipeline.native.rings import Slots


@dataclass(slots=True)
class Work:
    """What a stage works on during a call.

    Attributes:
        learn: What it holds with the constants of its learning; the same list as long as nothing
            replaces a tensor.
        forward: Likewise with the constants of its forward.
        factors: Of the optimizer's formula (updates or one for all, groups, factors).
    """

    learn: list[Tensor]
    forward: list[Tensor]
    factors: Tensor


@dataclass(slots=True)
class Rows:
    """The samples of a call, all tensors (count, ...).

    Attributes:
        inputs: Tensors of the inputs.
        noises: Likewise of random numbers, stage by stage.
        labels: Likewise of targets and weights.
        outputs: Where outputs go.
        is_learned: A byte for each.
        count: How many.
    """

    inputs: Sequence[Tensor]
    noises: Sequence[Tensor]
    labels: Sequence[Tensor]
    outputs: Sequence[Tensor]
    is_learned: bytes
    count: int


@dataclass(slots=True)
class Done:
    """What came of a call.

    Attributes:
        steps: For each sample the updates that stage 0 had made in this call before it.
        made: Updates of each stage.
        skipped: Samples of each stage that were passed over since something was not finite.
    """

    steps: list[int]
    made: list[int]
    skipped: list[int]


class Routine(Protocol):
    """Compiled code of all stages.

    Attributes:
        slots: Of each stage.
    """

    slots: list[Slots]

    def run(self, work: Sequence[Work], rows: Rows, *, threads: bool) -> Done:
        """Run samples in order until every stage is at rest.

        Args:
            work: Of each stage.
            rows: The samples.
            threads: Give every stage a thread of its own, instead of one to all of them.

        Raises:
            RaisedError: A stage raised.
        """

    def place(self, held: Sequence[int]) -> None:
        """Begin with so many samples held by each stage; number 0 is the oldest of the first."""

    def numbers(self) -> list[range]:
        """Return the numbers of the samples that each stage holds; modulo slots they say where."""

    def close(self) -> None:
        """Release what it has."""

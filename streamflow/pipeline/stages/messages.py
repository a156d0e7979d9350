"""What travels between stages: samples and drains down, gradients up, results to the caller."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from streamflow.pipeline.stages.lanes import Ready
from streamflow.pipeline.stages.recurrence import Key


@dataclass(slots=True)
class Sample:
    """One sample on its way through the stages.

    Attributes:
        number: Count of samples that entered the pipeline before this one.
        is_learned: Whether it causes updates.
        target: What the loss compares the output with.
        weight: Factor of its loss, or None for one.
        key: Its stream, for recurrent state.
        steps: Updates that stage 0 had made when it forwarded the sample.
    """

    number: int
    is_learned: bool
    target: Any = None
    weight: Tensor | None = None
    key: Key = None
    steps: int = 0


@dataclass(frozen=True, slots=True)
class Activation:
    """A sample's values on their way down."""

    sample: Sample
    values: tuple[Any, ...]
    ready: Ready = None


@dataclass(frozen=True, slots=True)
class Peek:
    """Values on their way down that take no slot and leave no trace."""

    values: tuple[Any, ...]
    key: Key = None
    ready: Ready = None
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Drain:
    """Apply all gradients in flight; the next sample enters at slot 0."""


@dataclass(frozen=True, slots=True)
class Settle:
    """Tell when there is nothing left to do without another sample."""


@dataclass(frozen=True, slots=True)
class Gradient:
    """The loss's gradient by a stage's outputs on its way up, or None for an empty one."""

    values: list[Tensor | None] | None
    ready: Ready = None


@dataclass(frozen=True, slots=True)
class Output:
    """What the last stage made of a sample; ``error`` only in answer to a peek."""

    value: Any
    steps: int = 0
    ready: Ready = None
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Drained:
    """One stage has applied all its gradients."""


@dataclass(frozen=True, slots=True)
class Settled:
    """One stage has nothing left to do, and nor have those behind it."""


Arrival = Activation | Peek | Drain | Settle
Upward = Gradient | Settled
Message = Arrival | Upward
Result = Output | Drained | Settled

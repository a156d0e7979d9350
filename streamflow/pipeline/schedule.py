"""In which order a stage performs its actions: pure decisions, no tensors.

Theory of operation. A schedule of S stages is two numbers, the slots from one sample to the next
and those from a sample's entering to its leaving:

    stage s runs sample n      forward in slot   period n + s
                              backward in slot   period n + delay - s

Within a slot a forward comes first. All else follows from them (`SCHEDULES`): a stage makes
(delay - 2s) // period updates between a sample's forward and its backward, its lag. Two stages of
``1f1b``, period 2 and delay 3, one row per stage:

    slot      0    1    2    3    4    5    6
    stage 0   F0        F1   B0   F2   B1   F3      lag 1
    stage 1        F0   B0   F1   B1   F2   B2      lag 0

Without a clock a stage keeps to that by counting: one that holds more samples than its lag must run
a backward next, and otherwise a forward; which of the two comes never depends on what happens to be
waiting. Only ``greedy`` looks at that.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from types import MappingProxyType

BACKWARDS = ("own", "stashed", "newest")


@dataclass(frozen=True, slots=True)
class Schedule:
    """The order of the actions of all stages, as a multiple of their number and a constant each.

    Attributes:
        period: Slots from one sample to the next.
        delay: Slots from a sample's forward in the first stage to its backward there.
        backwards: Inputs and weights at which a gradient may be taken.
        is_greedy: Run a waiting gradient first and forward a new sample otherwise; the slots are
            then those of a stream that never pauses.
    """

    period: tuple[int, int]
    delay: tuple[int, int]
    backwards: tuple[str, ...] = ("own", "stashed")
    is_greedy: bool = False

    def lag(self, stage_index: int, num_stages: int) -> int:
        """Return how many updates a stage makes between forward and backward of a sample."""
        period, delay = (a * num_stages + b for a, b in (self.period, self.delay))
        return (delay - 2 * stage_index) // period


SCHEDULES: Mapping[str, Schedule] = MappingProxyType(
    {
        "sequential": Schedule(period=(2, 0), delay=(2, -1)),
        "1f1b": Schedule(period=(0, 2), delay=(2, -1)),
        "greedy": Schedule(period=(0, 2), delay=(2, -1), is_greedy=True),
        "lockstep": Schedule(period=(0, 1), delay=(2, -2), backwards=("newest",)),
    }
)
"""By name; the reference, the checks of options and the table in the docs are held against it."""


class Action(Enum):
    """What a stage does next."""

    FORWARD = auto()
    BACKWARD = auto()
    WAIT = auto()


@dataclass(frozen=True, slots=True)
class Order:
    """The order of one stage's actions.

    Attributes:
        lag: Samples that the stage holds, beyond the one it works on, before it must run backward.
        is_greedy: Run a waiting gradient first and forward a new sample otherwise.
    """

    lag: int
    is_greedy: bool = False

    def next_action(
        self, num_held: int, *, has_arrival: bool, has_gradient: bool, is_draining: bool
    ) -> Action:
        """Choose the next action from what the stage holds and what waits for it."""
        may_backward = self.is_greedy or is_draining or num_held > self.lag
        if num_held and has_gradient and may_backward:
            return Action.BACKWARD
        if has_arrival and num_held <= self.lag and not is_draining:
            return Action.FORWARD
        return Action.WAIT


def orders(schedule: str, num_stages: int) -> tuple[Order, ...]:
    """Return the order of every stage, first stage first."""
    named = SCHEDULES[schedule]
    return tuple(Order(named.lag(s, num_stages), named.is_greedy) for s in range(num_stages))

"""In which order a stage performs its actions: pure decisions, no tensors.

Theory of operation. A stage holds the samples that it has forwarded and not yet run backward. Every
deterministic schedule is one number per stage, its lag L: L samples are held before the first
backward, then one forward and one backward alternate. Two stages of ``1f1b``, one row per stage:

    slot      0    1    2    3    4    5    6
    stage 0   F0        F1   B0   F2   B1   F3      L = 1
    stage 1        F0   B0   F1   B1   F2   B2      L = 0

So a stage that holds more than L samples must run a backward next, and otherwise a forward; which
of the two comes never depends on what happens to be waiting. Only ``greedy`` looks at that.
"""

from dataclasses import dataclass
from enum import Enum, auto

SCHEDULES = ("sequential", "1f1b", "greedy", "lockstep")
BACKWARDS = ("own", "stashed", "newest")


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
    below = range(num_stages - 1, -1, -1)
    match schedule:
        case "sequential":
            return tuple(Order(0) for _ in below)
        case "1f1b":
            return tuple(Order(lag) for lag in below)
        case "lockstep":
            return tuple(Order(2 * lag) for lag in below)
        case "greedy":
            return tuple(Order(lag, is_greedy=True) for lag in below)
    msg = f"schedule: expected one of {', '.join(SCHEDULES)}, got {schedule!r}; choose one of them"
    raise ValueError(msg)

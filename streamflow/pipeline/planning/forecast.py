"""What a schedule makes of the costs of its stages: rate and latency, by playing it through.

The stages follow the same :class:`~streamflow.pipeline.schedule.Order` as real ones, in a time that
is only computed. Inline there is one processor and no hand-over; in threads there are as many as
cores, and whatever a stage sends takes a while to arrive.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from streamflow.pipeline.planning.costs import Cost
from streamflow.pipeline.schedule import Action, Order


@dataclass(frozen=True, slots=True)
class Forecast:
    """How a pipeline runs while samples wait.

    Attributes:
        rate: Samples per second.
        latency: Seconds from the start of a sample's forward in the first stage to its prediction.
    """

    rate: float
    latency: float


def forecast(
    costs: Sequence[Cost], orders: Sequence[Order], *, processors: int, hand_over: float = 0.0
) -> Forecast:
    """Play a schedule through with samples always waiting.

    Args:
        costs: Seconds of each stage.
        orders: Order of each stage.
        processors: How many stages can be busy at the same time; where they cannot all, those
            nearer to the loss go first.
        hand_over: Seconds from the end of an action until a neighbour can use what it made.
    """
    warm_up = 8 * (len(costs) + max(order.lag for order in orders))
    last = 2 * warm_up
    game = _Game(costs, orders, processors, hand_over)
    game.play(last + 1)
    entered, predicted = game.entered, game.predicted
    period = (predicted[last] - predicted[warm_up]) / (last - warm_up)
    return Forecast(1 / period if period else float("inf"), predicted[last] - entered[last])


@dataclass(slots=True)
class _Player:
    """One stage; arrivals and gradients by the time at which they can be used."""

    cost: Cost
    order: Order
    num_held: int = 0
    free_at: float = 0.0
    arrivals: deque[float] = field(default_factory=deque)
    gradients: deque[float] = field(default_factory=deque)

    def next_action(self, now: float) -> Action:
        if self.free_at > now:
            return Action.WAIT
        return self.order.next_action(
            self.num_held,
            has_arrival=bool(self.arrivals) and self.arrivals[0] <= now,
            has_gradient=bool(self.gradients) and self.gradients[0] <= now,
            is_draining=False,
        )

    def times(self) -> list[float]:
        return [self.free_at, *list(self.arrivals)[:1], *list(self.gradients)[:1]]


class _Game:
    def __init__(
        self, costs: Sequence[Cost], orders: Sequence[Order], processors: int, hand_over: float
    ) -> None:
        self._players = [_Player(*pair) for pair in zip(costs, orders, strict=True)]
        self._processors = processors
        self._hand_over = hand_over
        self.entered: list[float] = []
        self.predicted: list[float] = []

    def play(self, num_samples: int) -> None:
        """Go on until so many samples are predicted."""
        # Enough arrivals that the first stage never waits for one.
        self._players[0].arrivals.extend([0.0] * (2 * num_samples))
        now = 0.0
        while len(self.predicted) < num_samples:
            if not self._start_one(now):
                now = min(t for player in self._players for t in player.times() if t > now)

    def _start_one(self, now: float) -> bool:
        """Start the action nearest to the loss that can start now, if there is one."""
        busy = sum(player.free_at > now for player in self._players)
        if busy >= self._processors:
            return False
        for index in reversed(range(len(self._players))):
            action = self._players[index].next_action(now)
            if action is not Action.WAIT:
                self._perform(index, action, now)
                return True
        return False

    def _perform(self, index: int, action: Action, now: float) -> None:
        player = self._players[index]
        if action is Action.FORWARD:
            self._forward(index, player, now)
        else:
            player.free_at = now + player.cost.backward + player.cost.update
            player.gradients.popleft()
            player.num_held -= 1
            if index:
                # A gradient goes up before the update.
                sent = now + player.cost.backward + self._hand_over
                self._players[index - 1].gradients.append(sent)

    def _forward(self, index: int, player: _Player, now: float) -> None:
        player.free_at = now + player.cost.forward
        player.arrivals.popleft()
        player.num_held += 1
        if index == 0:
            self.entered.append(now)
        if index == len(self._players) - 1:
            self.predicted.append(player.free_at)
            player.gradients.append(player.free_at)
        else:
            self._players[index + 1].arrivals.append(player.free_at + self._hand_over)

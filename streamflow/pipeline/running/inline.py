"""The inline executor: the caller's thread runs all stages in schedule order."""

import itertools
from collections import deque
from collections.abc import Sequence

from streamflow.pipeline.running.executor import Executor
from streamflow.pipeline.running.worker import Worker
from streamflow.pipeline.schedule import Order
from streamflow.pipeline.stages.messages import Arrival, Result
from streamflow.pipeline.stages.stage import Stage


class InlineExecutor(Executor):
    """Runs stages in one thread; nothing happens outside :meth:`exchange`."""

    name = "inline"

    def __init__(self, stages: Sequence[Stage], orders: Sequence[Order]) -> None:
        self._results: deque[Result] = deque()
        workers = [
            Worker(stage, order, report=self._results.append)
            for stage, order in zip(stages, orders, strict=True)
        ]
        for above, below in itertools.pairwise(workers):
            above.down = below.receive
            below.up = above.receive
        super().__init__(workers)
        # Downstream first: a gradient is on its way before a new sample enters, which makes
        # ``greedy`` equal to ``sequential`` here.
        self._downstream_first = workers[::-1]

    def exchange(self, arrivals: Sequence[Arrival], count: int) -> list[Result]:
        """Run the stages until nothing is left to do, and return the next ``count`` results.

        Raises:
            StageError: A stage raised.
        """
        first, results = self.workers[0], self._results
        for arrival in arrivals:
            first.receive(arrival)
        has_acted = True
        while has_acted:
            for worker in self._downstream_first:
                has_acted = worker.advance()
                if has_acted:
                    break
        return [results.popleft() for _ in range(count)]

    def settle(self) -> None:
        """Do nothing: the stages are at rest outside :meth:`exchange`."""

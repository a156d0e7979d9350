"""The threads executor: one thread per stage, one inbox per thread.

An inbox takes both activations and gradients, so a stage that may do either waits in one place.
Results and failures come back through one queue. Every wait ends by a message: work, a failure or
the request to stop.
"""

import threading
import weakref
from collections.abc import Sequence
from queue import SimpleQueue

from streamflow.pipeline.running.executor import Executor
from streamflow.pipeline.running.worker import Worker
from streamflow.pipeline.schedule import Order
from streamflow.pipeline.stages.messages import Arrival, Message, Result
from streamflow.pipeline.stages.stage import Stage

# None asks the thread to stop.
Inbox = SimpleQueue[Message | None]
Results = SimpleQueue[Result | BaseException]


class ThreadsExecutor(Executor):
    """Runs every stage in a thread of its own; the threads start with the first arrival."""

    name = "threads"

    def __init__(self, stages: Sequence[Stage], orders: Sequence[Order]) -> None:
        self._results: Results = SimpleQueue()
        self._inboxes: list[Inbox] = [SimpleQueue() for _ in stages]
        workers = [
            Worker(stage, order, report=self._results.put)
            for stage, order in zip(stages, orders, strict=True)
        ]
        super().__init__(workers)
        for index, worker in enumerate(workers):
            worker.down = self._inboxes[index + 1].put if index + 1 < len(stages) else None
            worker.up = self._inboxes[index - 1].put if index else None
        self._threads: list[threading.Thread] = []
        # A forgotten executor stops its threads too, at the latest when the interpreter ends.
        self._stop = weakref.finalize(self, _stop, self._inboxes, self._threads)

    def exchange(self, arrivals: Sequence[Arrival], count: int) -> list[Result]:
        """Hand arrivals to the first stage, and wait for as many results.

        Raises:
            StageError: A stage raised.
        """
        if not self._threads:
            self._start()
        for arrival in arrivals:
            self._inboxes[0].put(arrival)
        results: list[Result] = []
        while len(results) < count:
            result = self._results.get()
            if isinstance(result, BaseException):
                raise result
            results.append(result)
        return results

    def close(self) -> None:
        """Stop the threads after the action they perform, and wait for them."""
        self._stop()

    def _start(self) -> None:
        for worker, inbox in zip(self.workers, self._inboxes, strict=True):
            thread = threading.Thread(
                target=_run,
                args=(worker, inbox, self._results),
                name=f"streamflow stage {worker.stage.index}",
                daemon=True,
            )
            self._threads.append(thread)
            thread.start()


def _run(worker: Worker, inbox: Inbox, results: Results) -> None:
    try:
        while (message := inbox.get()) is not None:
            worker.receive(message)
            while inbox.empty() and worker.advance():
                pass
    except BaseException as error:  # it must reach the caller, who waits for it
        results.put(error)


def _stop(inboxes: Sequence[Inbox], threads: list[threading.Thread]) -> None:
    for inbox in inboxes:
        inbox.put(None)
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join()
    threads.clear()

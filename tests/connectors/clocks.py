"""A clock for tests, by which only sleeping takes time."""

from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import trio


class SleepingClock(trio.abc.Clock):
    """Goes on to the next deadline when all tasks wait, and none of them for a thread.

    That of ``trio.testing`` goes on after a pause, so that on a busy machine the work of a thread,
    such as a file that is written, lasts until some deadline that has nothing to do with it.
    """

    def __init__(self) -> None:
        self._now = 0.0

    def start_clock(self) -> None:
        """Do nothing: time stands still."""

    def current_time(self) -> float:
        """Return the seconds that have been slept."""
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Return how long to wait for events; asked when no task can go on."""
        if (
            deadline < float("inf")
            and not trio.to_thread.current_default_thread_limiter().borrowed_tokens
        ):
            self._now = max(self._now, deadline)
        return deadline - self._now


def by_clock(run: Callable[..., Any], *arguments: Any) -> Any:
    """Run in an event loop of its own, whose time only sleeping takes."""
    options = {"clock": SleepingClock()}
    return anyio.run(partial(run, *arguments), backend="trio", backend_options=options)

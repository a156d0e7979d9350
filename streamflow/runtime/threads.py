"""Opening and closing things that block in a worker thread."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from typing import TypeVar

import anyio
from anyio import CapacityLimiter, to_thread

T = TypeVar("T")

CLOSE_TIMEOUT = 10.0
"""Seconds that closing may take after a failure."""


@asynccontextmanager
async def opened_in_thread(
    manager: AbstractContextManager[T], limiter: CapacityLimiter | None
) -> AsyncIterator[T]:
    """Enter and leave ``manager`` in a worker thread; on the event loop without a limiter."""
    if limiter is None:
        with manager as value:
            yield value
        return
    value = await to_thread.run_sync(manager.__enter__, limiter=limiter)
    try:
        yield value
    except BaseException as error:
        with anyio.CancelScope(shield=True), anyio.move_on_after(CLOSE_TIMEOUT):
            arguments = type(error), error, error.__traceback__
            await to_thread.run_sync(
                manager.__exit__, *arguments, limiter=limiter, abandon_on_cancel=True
            )
        raise
    with anyio.CancelScope(shield=True):
        await to_thread.run_sync(manager.__exit__, None, None, None, limiter=limiter)

"""The event loop: which one a driver runs on, and a task beside a block."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import anyio

from streamflow.contracts import Context
from streamflow.errors import ConnectorError


def require_asyncio(context: Context, driver: str) -> None:
    """Raise unless the event loop is asyncio's.

    Args:
        context: What the node is told.
        driver: Whose driver needs it, in the genitive.

    Raises:
        ConnectorError: It is another one.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        message = (
            f"{context.name}: expected the event loop of asyncio, found another one; "
            f"run the graph on asyncio, which {driver} driver is written for"
        )
        raise ConnectorError(message) from None


@asynccontextmanager
async def beside(
    work: Callable[..., Coroutine[Any, Any, None]], *arguments: Any
) -> AsyncIterator[None]:
    """Run ``work`` in a task while the block runs, and cancel it at the end.

    Raises:
        Exception: What the block raised, as it is.
    """
    failure = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work, *arguments)
        try:
            yield
        except Exception as error:  # the task group would wrap it
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure

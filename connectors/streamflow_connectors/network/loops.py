"""Event loops that a driver runs on."""

from __future__ import annotations

import asyncio

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
